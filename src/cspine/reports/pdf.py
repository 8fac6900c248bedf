"""``report.pdf``: the report on one or two pages, for files, mail and print."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from io import BytesIO
from xml.sax.saxutils import escape

from reportlab.lib.colors import Color, HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer, Table
from reportlab.platypus.doctemplate import LayoutError

from cspine.errors import OutputError
from cspine.findings import Findings, LevelFinding
from cspine.reports import colours, figures, fonts, key_images, words
from cspine.reports.html import TIMES, provenance
from cspine.reports.inputs import ReportInput

FACE, BOLD = "Vera", "Vera-Bold"
MARGIN = 18 * mm
WIDTH = A4[0] - 2 * MARGIN
# A frame of ReportLab keeps this free inside its border, points.
FRAME_PADDING = 6
INK, QUIET, RULE = HexColor(0x1B1E23), HexColor(0x5B626D), HexColor(0xD5D9DE)
WARM = HexColor(0x9C3F0C)
# Pixels of a key image; 480 over 8 cm are 150 to the inch.
PICTURE_PX = 480
PICTURES_IN_A_ROW = 3
LARGEST_PICTURE = 66 * mm
PICTURE_QUALITY = 90
BAR_WIDTH, BAR_HEIGHT = 30 * mm, 2.2 * mm
# A name or a reason of any length must not break the page.
LONGEST_TEXT = 600

TEXT = ParagraphStyle("text", fontName=FACE, fontSize=8.5, leading=12.5, spaceAfter=1.5, textColor=INK)
SMALL = ParagraphStyle("small", parent=TEXT, fontSize=7, leading=9.8, spaceAfter=0, textColor=QUIET)
CODE = ParagraphStyle("code", parent=SMALL, wordWrap="CJK")
STRONG = ParagraphStyle("strong", parent=TEXT, fontName=BOLD)
TITLE = ParagraphStyle("title", parent=TEXT, fontName=BOLD, fontSize=19, leading=25, spaceAfter=4)
SECTION = ParagraphStyle("section", parent=TEXT, fontName=BOLD, fontSize=10, leading=14, spaceBefore=9, spaceAfter=3)


def render(report: ReportInput, *, named: bool = True) -> bytes:
    """The report as PDF 1.4 with embedded type. Same input, same bytes; dates are those of the findings.

    Args:
        report: the result.
        named: say the name of the file or folder that was read. It may hold the name of a patient, so it is left out
            where the PDF travels on without the study's folder.

    Raises:
        OutputError: the text cannot be laid out.
    """
    _register()
    findings = report.findings
    stream = BytesIO()
    document = SimpleDocTemplate(
        stream,
        pagesize=A4,
        leftMargin=MARGIN - FRAME_PADDING,
        rightMargin=MARGIN - FRAME_PADDING,
        topMargin=15 * mm,
        bottomMargin=20 * mm,
        title=f"{words.headline(findings)} · cervical spine CT",
        author=f"cspine {findings.provenance.cspine}",
        subject=words.RESEARCH,
        creator=f"cspine {findings.provenance.cspine}",
        initialFontName=FACE,
        invariant=1,
        lang="en",
        displayDocTitle=True,
    )
    each_page = partial(_page, created=findings.provenance.created)
    try:
        document.build(_story(report, named=named), onFirstPage=each_page, onLaterPages=each_page)
    except LayoutError as error:
        raise OutputError(
            "expected the report to fit on pages, but a part of it does not", where="report.pdf"
        ) from error
    return stream.getvalue()


def _register() -> None:
    """Make the faces known; doing so twice is harmless."""
    pdfmetrics.registerFont(TTFont(FACE, str(fonts.file(fonts.REGULAR))))
    pdfmetrics.registerFont(TTFont(BOLD, str(fonts.file(fonts.BOLD))))
    pdfmetrics.registerFontFamily(FACE, normal=FACE, bold=BOLD, italic=FACE, boldItalic=BOLD)


def _story(report: ReportInput, *, named: bool) -> list[Flowable]:
    """The parts of the report from top to bottom."""
    findings = report.findings
    story = _head(findings, named=named)
    if findings.status == "refused":
        story += [_heading("What to do"), *(_paragraph(line) for line in words.advice(findings))]
    else:
        story += [_heading("Level by level"), _levels(findings.levels)]
        story += _pictures(report)
    story += _limits(findings)
    if findings.status != "refused":
        reading = words.reading(findings, tint=False, numbered=report.series is not None)
        story.append(KeepTogether([_heading("How to read this"), *map(_paragraph, reading)]))
    return [*story, *_provenance(findings, named=named)]


def _head(findings: Findings, *, named: bool) -> list[Flowable]:
    """What is said of the patient."""
    source = findings.provenance.input
    name = source.name if named and source is not None else ""
    about = " · ".join(part for part in ("Cervical spine CT", name, words.moment(findings.provenance.created)) if part)
    title = ParagraphStyle("verdict", parent=TITLE, textColor=WARM if words.suspected(findings) else INK)
    return [
        _paragraph(about, SMALL),
        _paragraph(words.headline(findings), title),
        *map(_paragraph, words.said(findings)),
    ]


def _levels(levels: Sequence[LevelFinding]) -> Table:
    """The table of the seven levels."""
    head = [
        _paragraph(text, SMALL)
        for text in ("Level", "Fracture probability", "", "Finding", "In the scan", "Sure of level")
    ]
    rows = [head, *(_level(item) for item in levels)]
    widths = (15 * mm, 15 * mm, BAR_WIDTH + 6 * mm, 0, 25 * mm, 24 * mm)
    rest = WIDTH - sum(widths)
    table = Table(rows, [width or rest for width in widths], repeatRows=1, hAlign="LEFT")
    table.setStyle(
        [
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("SPAN", (1, 0), (2, 0)),
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, RULE),
            ("LEFTPADDING", (0, 0), (0, -1), 0),
            ("TOPPADDING", (0, 0), (-1, -1), 2.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 3.5),
        ]
    )
    return table


def _level(item: LevelFinding) -> list[Flowable]:
    """One row: what was found, or why nothing was said."""
    style = ParagraphStyle("suspected", parent=STRONG, textColor=WARM) if item.fracture else TEXT
    found = words.finding(item)
    if item.fracture is None:
        found, style = f"not judged: {words.why_not(item).rstrip('.')}", SMALL
    elif item.type:
        found += f", likely {words.fracture_type(item.type)}"
    return [
        _paragraph(item.level, STRONG),
        _paragraph(words.percent(item.probability), STRONG if item.fracture else TEXT),
        Spacer(0, 0) if item.probability is None else _bar(item.probability, item.threshold),
        _paragraph(found, style),
        _paragraph(words.in_scan(item), SMALL),
        _paragraph(words.percent(item.confidence) if item.visible else "–", SMALL),
    ]


def _bar(value: float, threshold: float | None) -> Flowable:
    """A probability on a scale from 0 to 1, the threshold as a tick across it."""
    from reportlab.graphics.shapes import Drawing, Line, Rect

    drawing = Drawing(BAR_WIDTH, 2 * BAR_HEIGHT)
    low = BAR_HEIGHT / 2
    red, green, blue = (part / 255 for part in colours.ramp("light")[figures.step_of(value) or 0])
    drawing.add(Rect(0, low, BAR_WIDTH, BAR_HEIGHT, fillColor=HexColor(0xE9ECEF), strokeWidth=0, strokeColor=None))
    drawing.add(Rect(0, low, BAR_WIDTH * value, BAR_HEIGHT, fillColor=Color(red, green, blue), strokeColor=None))
    if threshold is not None:
        at = BAR_WIDTH * threshold
        drawing.add(Line(at, 0, at, 2 * BAR_HEIGHT, strokeColor=INK, strokeWidth=0.8))
    return drawing


def _pictures(report: ReportInput) -> list[Flowable]:
    """Rows of key images with their captions."""
    shown = key_images.key_images(report, PICTURE_PX, views=_views(report.findings))
    if not shown:
        return []
    columns = min(PICTURES_IN_A_ROW, len(shown))
    edge = min(LARGEST_PICTURE, (WIDTH - (columns - 1) * 3 * mm) / columns)
    cells: list[list[Flowable]] = []
    for one in shown:
        stream = BytesIO()
        one.picture.save(stream, "JPEG", quality=PICTURE_QUALITY)
        stream.seek(0)
        caption = f"{one.item.level} · {words.percent(one.item.probability)} · {one.caption}"
        cells.append([Image(stream, edge, edge), Spacer(0, 1 * mm), _paragraph(caption, SMALL)])
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    tables = [Table([row], [edge + 3 * mm] * len(row), hAlign="LEFT") for row in rows]
    for table in tables:
        table.setStyle([("LEFTPADDING", (0, 0), (-1, -1), 0), ("VALIGN", (0, 0), (-1, -1), "TOP")])
    return [KeepTogether([_heading("Key images"), tables[0]]), *tables[1:]]


def _views(findings: Findings) -> int:
    """Two sides of the only level, one of several."""
    return key_images.VIEWS if len(key_images.chosen(findings.levels)) == 1 else 1


def _limits(findings: Findings) -> list[Flowable]:
    """Warnings; those of a refused study are its head."""
    if findings.status == "refused" or not findings.warnings:
        return []
    lines = [_paragraph(words.sentence(warning.message)) for warning in findings.warnings]
    return [KeepTogether([_heading("Warnings"), lines[0]]), *lines[1:]]


def _provenance(findings: Findings, *, named: bool) -> list[Flowable]:
    """How this came about: label and value, in two columns."""
    rows = []
    for title, pairs in provenance(findings):
        if title == TIMES:
            continue
        for label, value, fixed in pairs:
            if named or label != "Name":
                rows.append([_paragraph(label, SMALL), _paragraph(value, CODE if fixed else SMALL)])
    table = Table(rows, [38 * mm, WIDTH - 38 * mm], hAlign="LEFT")
    table.setStyle(
        [
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LEFTPADDING", (0, 0), (0, -1), 0),
            ("TOPPADDING", (0, 0), (-1, -1), 0),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
        ]
    )
    return [KeepTogether([_heading("How this came about"), table])]


def _heading(text: str) -> Paragraph:
    return _paragraph(text, SECTION)


def _paragraph(text: str, style: ParagraphStyle = TEXT) -> Paragraph:
    """Text of any origin: nothing in it is markup, and no length breaks the page."""
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    return Paragraph(escape(fonts.known(short)), style)


def _page(canvas: Canvas, _document: SimpleDocTemplate, *, created: str) -> None:
    """The foot of every page, and the dates of the file."""
    canvas.setDateFormatter(lambda *_: _pdf_date(created))
    canvas.saveState()
    y = 11 * mm
    canvas.setStrokeColor(RULE)
    canvas.line(MARGIN, y + 4 * mm, A4[0] - MARGIN, y + 4 * mm)
    canvas.setFillColor(INK)
    canvas.setFont(BOLD, 7)
    canvas.drawString(MARGIN, y, words.RESEARCH)
    canvas.setFont(FACE, 7)
    canvas.drawString(MARGIN + pdfmetrics.stringWidth(f"{words.RESEARCH} ", BOLD, 7), y, words.LIMITS)
    canvas.setFillColor(QUIET)
    canvas.drawRightString(A4[0] - MARGIN, y, f"Page {canvas.getPageNumber()}")
    canvas.restoreState()


def _pdf_date(created: str) -> str:
    """An ISO 8601 time as a PDF date (ISO 32000-1, 7.9.4), in UTC."""
    return datetime.fromisoformat(created).strftime("D:%Y%m%d%H%M%SZ")
