"""Every address of the application, tried by people it is not for, without a token, and looked at for its headers.

Nothing here is written by hand but what an argument of a rule stands for: a new route is tried the day it is added.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from web_factory import Browser, browser
from web_site import ADA, AUDREY, BEA, EVE, ROOT, Site, furnish, key_of

# For everybody, by design: ways in, and what is not about anybody.
PUBLIC = re.compile(r"^(static|viewing\.asset|login\.|joining\.|oidc\.|health\.|api\.(docs|openapi))")
# Administrators look after these; nobody else does.
LOOKED_AFTER = re.compile(r"^(admin\.|sharing\.(index|group|make_group|add_member|remove_member|delete_group)$)")
CHANGING = ("POST", "PUT", "DELETE", "PATCH")
# What would do something if it were let in.
BODY: dict[str, Any] = {
    "level": "patient", "verdict": "reject", "comment": "taken over", "act": "sign", "studies": {}, "sure": "on",
    "roles": "administrator", "active": "yes", "name": "taken over", "files": [{"name": "a", "size": 1}],
}  # fmt: skip
# Programs must send what the description says, and no more.
EXACT: dict[str, Any] = {
    "api.answer": {"level": "patient", "verdict": "reject", "comment": "taken over"},
    "api.run_upload": {"studies": {"00000000-0000-4000-8000-000000000000": None}},
    "api.begin_upload": {"files": [{"name": "a", "size": 1}]},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return furnish(tmp_path_factory.mktemp("site"))


class Caller:
    """Asks for addresses as one person, with the token that the person's own pages have."""

    def __init__(self, site: Site, email: str | None, key: str | None = None) -> None:
        self.inside: Browser = browser(site.app) if key else site.browser(email)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {"X-CSRFToken": self.inside.token()}
        self.site = site

    def ask(self, rule: Rule, method: str, address: str) -> TestResponse:
        if method not in CHANGING:
            return self.inside.get(address, headers=self.headers)
        if rule.endpoint.endswith((".write", ".send_piece")):
            more: dict[str, Any] = {"data": b"56789", "query_string": {"offset": "5"}}
        elif rule.endpoint in EXACT:
            more = {"json": EXACT[rule.endpoint]}
        elif address.startswith("/api/") or address.endswith(".json"):
            more = {"json": BODY}
        else:
            more = {"data": {name: value for name, value in BODY.items() if isinstance(value, str)}}
        return self.inside.open(address, method=method, headers=self.headers, **more)


def strangers(ids: Mapping[str, str]) -> dict[str, str]:
    """The same names for things that do not exist."""
    return {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)) for name in ids}


def shown(answer: TestResponse, ids: Mapping[str, str]) -> str:
    """An answer without what differs by itself: ids of the address, tokens, digests of them."""
    text = answer.get_data(as_text=True) + (answer.headers.get("Location") or "")
    for name, value in ids.items():
        text = text.replace(value, name)
    return re.sub(r'(content|value)="[\w.-]{40,}"|"csrf":\s*"[^"]+"', "", text)


# Who may not --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("email", [EVE, AUDREY, ROOT, None], ids=["second-user", "auditor", "administrator", "nobody"])
def test_no_address_of_the_first_person_opens_for_another(site: Site, email: str | None) -> None:
    """Real ids and ids of nothing are answered alike, with no content of hers, and nothing of hers changes."""
    before, caller, nothing = site.state(), Caller(site, email), strangers(site.ids)
    wrong, tried = [], 0
    for rule, method in site.rules():
        if PUBLIC.match(rule.endpoint) or not rule.arguments:
            continue
        if email == ROOT and LOOKED_AFTER.match(rule.endpoint):
            continue
        theirs = site.addresses(rule, nothing)
        for address, other in zip(site.addresses(rule), theirs, strict=True):
            tried += 1
            answer, of_nothing = caller.ask(rule, method, address), caller.ask(rule, method, other)
            page, same = shown(answer, site.ids), shown(of_nothing, nothing)
            turned_away = answer.status_code in (401, 403, 404)
            if email is None:
                turned_away = answer.status_code == 401 or answer.headers.get("Location", "").startswith("/login")
            if not turned_away or answer.status_code != of_nothing.status_code or page != same:
                wrong.append((method, address, answer.status, of_nothing.status))
            if any(text in page for text in site.hidden):
                wrong.append((method, address, "shows what is hers", ""))
    assert not wrong
    assert tried > 40, "rules with arguments were found"
    assert site.state() == before


@pytest.mark.parametrize("email", [EVE, AUDREY, ROOT, None], ids=["second-user", "auditor", "administrator", "nobody"])
def test_no_list_of_others_names_what_is_hers(site: Site, email: str | None) -> None:
    caller, wrong = Caller(site, email), []
    for rule, method in site.rules("GET"):
        if rule.arguments:
            continue
        answer = caller.ask(rule, method, rule.rule)
        hidden = site.unshown if rule.endpoint == "trail.index" and email == AUDREY else site.hidden
        said = [text for text in hidden if text in answer.get_data(as_text=True)]
        if said:
            wrong.append((rule.rule, said))
        if email is None and not PUBLIC.match(rule.endpoint) and answer.status_code not in (302, 401):
            wrong.append((rule.rule, [answer.status]))
    assert not wrong


def test_a_key_opens_what_its_owner_and_its_scopes_allow_and_no_more(site: Site) -> None:
    """Of another person: nothing of hers. Her own for reading: nothing that changes. Beyond the API: nothing."""
    before, wrong = site.state(), []
    eve = Caller(site, None, key_of(site.app, EVE, "read", "upload", "answer"))
    reading = Caller(site, None, key_of(site.app, ADA, "read"))
    before = site.state()
    for rule, method in site.rules():
        if PUBLIC.match(rule.endpoint):
            continue
        for address in site.addresses(rule):
            by_eve, by_reading = eve.ask(rule, method, address), reading.ask(rule, method, address)
            inside = address.startswith("/api/")
            if rule.arguments and by_eve.status_code not in ((403, 404) if inside else (302, 400, 401, 403)):
                wrong.append((method, address, "Eve's", by_eve.status))
            if method in CHANGING and inside and by_reading.status_code != 403:
                wrong.append((method, address, "reading", by_reading.status))
            if not inside and by_reading.status_code == 200:
                wrong.append((method, address, "outside the API", by_reading.status))
            if any(text in shown(by_eve, site.ids) for text in site.hidden):
                wrong.append((method, address, "shows what is hers", ""))
    assert not wrong
    assert site.state()["studies"] == before["studies"]


def test_members_of_a_group_read_what_is_shared_and_change_nothing(site: Site) -> None:
    before, bea, wrong = site.state(), Caller(site, BEA), []
    for rule, method in site.rules():
        if "study_id" not in rule.arguments or rule.endpoint in ("answers.submit", "answers.submit_json"):
            continue  # readers answer, and every answer says whose it is
        if rule.endpoint in ("api.answer", "api.sign"):
            continue
        for address in site.addresses(rule):
            answer = bea.ask(rule, method, address)
            if method in CHANGING and answer.status_code not in (403, 404):
                wrong.append((method, address, answer.status))
    page = site.browser(BEA).get(f"/studies/{site.ids['study_id']}")
    assert not wrong and page.status_code == 200
    assert site.state() == before


# The same addresses for whom they are -------------------------------------------------------------------------------


def hers(site: Site) -> Iterator[tuple[Rule, str, TestResponse]]:
    """Everything that can be looked at, as the one who may."""
    for rule, method in site.rules("GET"):
        email = ROOT if LOOKED_AFTER.match(rule.endpoint) else AUDREY if rule.endpoint.startswith("trail.") else ADA
        caller = Caller(site, email)
        for address in site.addresses(rule):
            yield rule, address, caller.ask(rule, method, address)


def test_the_addresses_are_real_and_every_answer_has_its_headers(site: Site) -> None:
    """Otherwise the tests above would prove nothing."""
    wrong, opened = [], 0
    for rule, address, answer in hers(site):
        opened += answer.status_code == 200
        if answer.status_code != 200 and not PUBLIC.match(rule.endpoint):
            allowed = rule.endpoint in ("accounts.delete", "artefacts.model", "second_factor.page")
            if not allowed:
                wrong.append((address, answer.status))
        wrong += [(address, fault) for fault in header_faults(rule, answer)]
    assert not wrong
    assert opened > 45


def header_faults(rule: Rule, answer: TestResponse) -> list[str]:
    """What is wrong with the headers of an answer and with the addresses that it names."""
    head, found = answer.headers, []
    policy = dict(part.strip().partition(" ")[::2] for part in head.get("Content-Security-Policy", "").split(";"))
    report = answer.mimetype == "text/html" and "sandbox" in policy
    if policy.get("default-src") != "'none'":
        found.append(f"Content-Security-Policy: {policy}")
    scripts = policy.get("script-src", "'none'")
    if "'unsafe-inline'" in scripts or "'unsafe-eval'" in scripts or "http" in " ".join(policy.values()):
        found.append(f"Content-Security-Policy: {scripts}")
    if not report and "unsafe" in policy.get("style-src", ""):
        found.append("style-src")
    if report and "allow-same-origin" in policy["sandbox"]:
        found.append("a report must run as nobody")
    for name, wanted in (("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Opener-Policy", "same-origin")):
        if head.get(name) != wanted:
            found.append(name)
    if head.get("X-Frame-Options") not in ("DENY", "SAMEORIGIN") or "frame-ancestors" not in policy:
        found.append("frames")
    if not head.get("Referrer-Policy") or "Server" in head:
        found.append("Referrer-Policy or Server")
    if rule.endpoint not in ("static", "viewing.asset") and head.get("Cache-Control") != "no-store":
        found.append(f"Cache-Control: {head.get('Cache-Control')}")
    if answer.mimetype == "text/html":
        found += _elsewhere(answer.get_data(as_text=True))
    return found


def _elsewhere(page: str) -> list[str]:
    """Addresses of other places in a page, and code in it."""
    named = re.findall(r"""\b(?:src|href|action|srcset|formaction)=["']((?:[a-z]+:)?//[^"']+)""", page)
    handlers = re.findall(r"<[^>]+\son[a-z]+\s*=", page)
    return [*named, *handlers]


def test_what_changes_something_needs_a_token_of_ones_own(site: Site) -> None:
    """Without one, and with another person's, nothing happens: no address is forgotten."""
    before = site.state()
    inside, wrong, tried = site.browser(ADA), [], 0
    alien = browser(site.app).token()
    for rule, method in site.rules(*CHANGING):
        for address in site.addresses(rule):
            tried += 1
            for headers in ({}, {"X-CSRFToken": alien}, {"X-CSRFToken": "x"}):
                caller = Caller.__new__(Caller)
                caller.inside, caller.headers, caller.site = inside, headers, site
                answer = caller.ask(rule, method, address)
                if answer.status_code != 400 or "This page" not in answer.get_data(as_text=True):
                    wrong.append((method, address, headers, answer.status))
    assert not wrong
    assert tried > 50
    assert site.state() == before


def test_nothing_is_changed_by_looking(site: Site) -> None:
    before = site.state()
    for _ in hers(site):
        pass
    assert site.state() == before


# Cookies ------------------------------------------------------------------------------------------------------------


def cookies(answer: TestResponse) -> dict[str, str]:
    return {line.partition("=")[0]: line for line in answer.headers.getlist("Set-Cookie")}


def test_cookies_are_for_this_site_and_no_script(site: Site) -> None:
    answer = browser(site.app).log_in(EVE)
    found = cookies(answer)
    assert "cspine" in found
    for line in found.values():
        assert "HttpOnly" in line and "SameSite=" in line and "Path=/" in line and "Domain=" not in line, line


def test_over_https_cookies_are_bound_to_the_host_and_browsers_told_to_stay(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from web_factory import person, web_app

    app = web_app(tmp_path_factory.mktemp("https"), base_url="https://cspine.example.org")
    person(app, EVE)
    here = {"wsgi.url_scheme": "https", "HTTP_HOST": "cspine.example.org", "SERVER_PORT": "443"}
    someone = browser(app, **here)
    page = someone.get("/forgot", base_url="https://cspine.example.org")
    token = re.search(r'name="csrf-token" content="([^"]+)"', page.get_data(as_text=True))
    assert token is not None
    form = {"email": EVE, "password": "seven quiet herons", "csrf_token": token.group(1)}
    answer = someone.post(
        "/login",
        data=form,
        base_url="https://cspine.example.org",
        headers={"Referer": "https://cspine.example.org/login"},
    )
    assert answer.status_code == 302, answer.get_data(as_text=True)
    found = cookies(answer)
    assert "__Host-cspine" in found
    assert all("Secure" in line and "HttpOnly" in line for line in found.values())
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "cspine.example.org:80@evil.example"])
def test_other_names_of_the_host_are_refused(site: Site, host: str) -> None:
    """So that no letter leads elsewhere, and no page elsewhere reaches this machine by a name of its own."""
    assert site.browser(None).get("/login", headers={"Host": host}).status_code == 400


def test_the_audit_trail_names_no_study_and_no_upload(site: Site) -> None:
    trail = "".join(path.read_text() for path in site.app.extensions["cspine"].audit.folder.glob("*.jsonl"))
    assert '"uploaded"' in trail and '"judged"' in trail
    named = [value for value in (*site.unshown, *site.numbers) if value in trail]
    assert not named, "studies stand there under pseudonyms, and ids of studies follow from those of uploads"
