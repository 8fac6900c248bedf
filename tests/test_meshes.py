"""Vertebrae from meshes: files are read or refused with a reason, solids are exact, people made of them are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from cspine.errors import ShapeError, UsageError
from cspine.phantoms import meshes as reading
from cspine.phantoms.blending import MeshLibrary
from cspine.phantoms.cohort import Cohort
from cspine.phantoms.fitting import fit_landmarks, fit_vertebra, local_frame, moved
from cspine.phantoms.grid import Grid
from cspine.phantoms.meshes import MeshSet, load_mesh_set, mesh_files
from cspine.phantoms.scene import make_scene
from cspine.phantoms.shapes import Shape
from cspine.phantoms.spine import Anatomy, Spine, build_spine, sample_anatomy
from cspine.phantoms.template import LENGTHS, template_of
from cspine.phantoms.voxelise import shape_of_mesh

COARSE = 1.4
# Heights of the local frames of C1..C7 in a straight column, mm.
HEIGHTS = {1: 96.0, 2: 76.0, 3: 57.0, 4: 40.0, 5: 23.0, 6: 6.0, 7: -12.0}


def person(seed: int) -> Anatomy:
    return sample_anatomy(np.random.default_rng(seed))


def pose_at(height: float) -> np.ndarray:
    pose = np.eye(4)
    pose[2, 3] = height
    return pose


@pytest.fixture(scope="module")
def made() -> MeshSet:
    """A set that needs no files: the mean vertebrae, a tenth larger."""
    shapes, marks, surfaces = {}, {}, {}
    for level in range(1, 8):
        one = template_of(level)
        shapes[level] = Shape(one.shape.values * 1.1, one.shape.origin * 1.1, one.shape.spacing * 1.1)
        marks[level] = {name: at * 1.1 for name, at in one.marks.items()}
        surfaces[level] = one.surface * 1.1
    poses = {level: pose_at(1.1 * height) for level, height in HEIGHTS.items()}
    return MeshSet("made", shapes, marks, surfaces, poses, dict.fromkeys(range(1, 8), 1.1))


@pytest.fixture(scope="module")
def library(made: MeshSet) -> MeshLibrary:
    return MeshLibrary((made,), share=1.0)


@pytest.fixture(scope="module", params=[1, 2])
def spine(request: pytest.FixtureRequest, library: MeshLibrary) -> Spine:
    return build_spine(replace(person(request.param), fused=()), COARSE, library)


def voxel_surface(shape: Shape, step: int) -> trimesh.Trimesh:
    """The faces between voxels inside and outside: closed, outwards, and made without any library's help."""
    solid = np.pad(shape.values[::step, ::step, ::step] < 0, 1)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5
    quads = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for sign in (1, -1):
            outside = np.roll(solid.transpose(2, 1, 0), -sign, axis=axis)
            at = np.argwhere(solid.transpose(2, 1, 0) & ~outside).astype(float)
            quad = np.repeat(at[:, None], 4, axis=1)
            quad[..., axis] += 0.5 * sign
            quad[..., [u, v]] += corners if sign > 0 else corners[::-1]
            quads.append(quad)
    points = (np.concatenate(quads) - 1).reshape(-1, 3) * step * shape.spacing + shape.origin
    first = np.arange(0, len(points), 4)[:, None]
    faces = np.concatenate([first + [0, 1, 2], first + [0, 2, 3]])
    mesh = trimesh.Trimesh(points, faces, process=False)
    mesh.merge_vertices()
    return mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of files, as exported by somebody who also models discs."""
    out = tmp_path_factory.mktemp("somebody")
    for level, height in HEIGHTS.items():
        mesh = voxel_surface(template_of(level).shape, 2)
        mesh.apply_translation([3.0, -40.0, 1200.0 + height])
        suffix = (".ply", ".stl", ".obj")[level % 3]
        mesh.export(out / f"{'C' if level % 2 else 'model_c'}{level}_bone{suffix}")
    trimesh.creation.box((15, 15, 5)).export(out / "c2c3disc.ply")
    return out


def boxes(out: Path, change: Callable[[trimesh.Trimesh, int], object] | None = None) -> Path:
    """A set of boxes of the size of vertebrae."""
    for level, height in HEIGHTS.items():
        mesh = trimesh.creation.box((60, 50, 12))
        mesh.apply_translation([0, 0, height])
        if change is not None:
            change(mesh, level)
        mesh.export(out / f"C{level}.ply")
    return out


class TestFiles:
    def test_levels_come_from_names_and_discs_are_left_alone(self, tmp_path: Path) -> None:
        names = ["C1_FJ3176_atlas.ply", "c2.stl", "vertebra-C3.obj", "my c4.PLY", "C5.ply", "C6.ply", "x_C7.ply"]
        for name in [*names, "c2c3disc.ply", "FJ1657_artery.ply", "C3.txt", "C12.ply"]:
            (tmp_path / name).touch()
        assert {level: path.name for level, path in mesh_files(tmp_path).items()} == dict(enumerate(names, 1))

    def test_a_missing_level_is_named(self, tmp_path: Path) -> None:
        for level in (1, 2, 4, 5, 6):
            (tmp_path / f"C{level}.ply").touch()
        with pytest.raises(ShapeError, match="no mesh of C3, C7"):
            mesh_files(tmp_path)

    def test_two_files_of_a_level_are_refused(self, tmp_path: Path) -> None:
        for name in (*(f"C{level}.ply" for level in range(1, 8)), "c4_old.stl"):
            (tmp_path / name).touch()
        with pytest.raises(ShapeError, match=r"C4 has 2 files: C4.ply, c4_old.stl"):
            mesh_files(tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ShapeError, match="no such folder"):
            MeshLibrary.load([tmp_path / "nothing"])

    def test_not_a_mesh(self, tmp_path: Path) -> None:
        for level in range(1, 8):
            (tmp_path / f"C{level}.ply").write_text("not a mesh")
        with pytest.raises(ShapeError, match=r"cannot be read|no triangles") as caught:
            load_mesh_set(tmp_path)
        assert "C1.ply" in str(caught.value)

    @pytest.mark.parametrize(("factor", "unit"), [(0.001, "metres"), (0.1, "centimetres")])
    def test_units(self, tmp_path: Path, factor: float, unit: str) -> None:
        with pytest.raises(ShapeError, match=unit):
            load_mesh_set(boxes(tmp_path, lambda mesh, _: mesh.apply_scale(factor)))

    def test_upside_down(self, tmp_path: Path) -> None:
        turn = np.diag([1.0, -1.0, -1.0, 1.0])
        with pytest.raises(ShapeError, match="z must point to the head"):
            load_mesh_set(boxes(tmp_path, lambda mesh, _: mesh.apply_transform(turn)))

    def test_back_to_front(self, tmp_path: Path) -> None:
        def reshape(mesh: trimesh.Trimesh, _: int) -> None:
            mesh.vertices = np.where(mesh.vertices[:, 1:2] < 0, mesh.vertices * [0.05, 1, 1], mesh.vertices)

        with pytest.raises(ShapeError, match="lie behind their spinous processes"):
            load_mesh_set(boxes(tmp_path, reshape))

    def test_mirrored_corners_are_noticed(self, tmp_path: Path) -> None:
        with pytest.raises(ShapeError, match="point inwards, as after mirroring"):
            load_mesh_set(boxes(tmp_path, lambda mesh, _: mesh.invert()))

    def test_holes_are_refused_and_the_file_named(self, tmp_path: Path) -> None:
        def open_up(mesh: trimesh.Trimesh, level: int) -> None:
            if level == 5:
                mesh.update_faces(mesh.face_normals[:, 1] < 0.9)

        other = boxes(tmp_path, open_up)
        with pytest.raises(ShapeError, match=r"not closed.*C5.ply"):
            shape_of_mesh(reading._read(other / "C5.ply"), 1.0, where="C5.ply")

    def test_what_is_no_vertebra_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ShapeError, match=r"does not look like C\d|no canal where C\d"):
            load_mesh_set(boxes(tmp_path))


class TestSolids:
    def test_distances_are_exact_beside_the_surface(self) -> None:
        ball = trimesh.creation.icosphere(subdivisions=4, radius=12.0)
        ball.apply_translation([5.0, -3.0, 100.0])
        shape = shape_of_mesh(ball, 0.6)
        points = np.random.default_rng(0).normal(size=(4000, 3))
        points *= np.random.default_rng(1).uniform(10, 14, (4000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
        error = shape.sample((points + [5.0, -3.0, 100.0]).astype(np.float32)) - (np.linalg.norm(points, axis=1) - 12)
        assert np.abs(error).max() < 0.15

    def test_parts_that_share_a_wall_become_one(self, tmp_path: Path) -> None:
        halves = [trimesh.creation.box((20, 20, 20)), trimesh.creation.box((20, 20, 20))]
        halves[1].apply_translation([20, 0, 0])
        trimesh.util.concatenate(halves).export(tmp_path / "two.ply")
        shape = shape_of_mesh(reading._read(tmp_path / "two.ply"), 1.0)
        assert shape.sample(np.array([[10.0, 0, 0]], dtype=np.float32))[0] < -8


class TestFitting:
    @pytest.mark.parametrize("level", [1, 2, 5, 7])
    def test_landmarks_of_a_known_vertebra_are_found(self, level: int) -> None:
        known = build_spine(person(6), 1.1)
        found = fit_landmarks(level, known.shapes[level])
        errors = [np.linalg.norm(found[k] - at) for k, at in known.landmarks[level].items() if k not in LENGTHS]
        assert np.median(errors) < 1.0
        assert found.keys() == known.landmarks[level].keys()

    def test_the_frame_follows_a_turned_vertebra(self) -> None:
        known, pose = build_spine(person(2), 1.1), np.eye(4)
        pose[:3, :3] = Rotation.from_euler("xyz", [18, -6, 15], degrees=True).as_matrix()
        pose[:3, 3] = [31.0, -120.0, 900.0]
        grid = Grid.axis_aligned([31.0, -120.0, 900.0], [96, 110, 80], 1.2)
        turned = Shape(known.shapes[5].sample(grid.points(pose)), grid.affine[:3, 3].astype(np.float32), 1.2)
        frame = local_frame(5, turned)
        off = np.linalg.inv(pose) @ frame
        assert np.linalg.norm(off[:3, 3]) < 1.5
        assert np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude()) < 6
        assert np.allclose(frame[:3, :3] @ frame[:3, :3].T, np.eye(3))

    def test_a_coarse_mask_without_its_spinous_process(self) -> None:
        known = build_spine(person(3), 1.0)
        grid = Grid.axis_aligned([0.0, 12.0, 0.0], [80, 90, 50], 2.0)
        points = grid.points()
        mask = (known.shapes[4].sample(points) < 0) & (points[..., 1] < known.landmarks[4]["spinous_base"][1])
        values = 2.0 * (distance_transform_edt(~mask) - distance_transform_edt(mask)) - np.where(mask, -1.0, 1.0)
        fit = fit_vertebra(4, Shape(values.astype(np.float32), grid.affine[:3, 3].astype(np.float32), 2.0))
        front = [k for k in fit.marks if k not in LENGTHS and "spinous" not in k and "lamina" not in k]
        errors = [np.linalg.norm(fit.marks[k] - known.landmarks[4][k]) for k in front]
        assert np.median(errors) < 2.0
        assert np.linalg.norm(fit.frame[:3, 3]) < 2.0

    def test_a_ball_is_no_vertebra(self) -> None:
        grid = Grid.axis_aligned([0.0, 0.0, 0.0], [60, 60, 60], 2.0)
        ball = np.linalg.norm(grid.points(), axis=-1) - 22.0
        with pytest.raises(ShapeError, match="does not look like C4"):
            fit_vertebra(4, Shape(ball.astype(np.float32), grid.affine[:3, 3].astype(np.float32), 2.0))

    def test_local_marks_undo_the_frame(self) -> None:
        fit = fit_vertebra(6, template_of(6).shape)
        assert np.allclose(moved(fit.local_marks, fit.frame)["spinous_tip"], fit.marks["spinous_tip"])


class TestLoading:
    def test_a_set_of_files(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "SET_SPACING_MM", 1.2)
        found = load_mesh_set(folder)
        for level, height in HEIGHTS.items():
            assert np.allclose(found.poses[level][:3, 3], [3.0, -40.0, 1200.0 + height], atol=1.6), level
            marks, known = found.landmarks[level], template_of(level).marks
            errors = [np.linalg.norm(marks[name] - known[name]) for name in known if name not in LENGTHS]
            assert np.median(errors) < 1.6, level


class TestPeople:
    def test_without_meshes_nothing_changes(self, made: MeshSet) -> None:
        plain, never = build_spine(person(4), COARSE), build_spine(person(4), COARSE, MeshLibrary((made,), share=0.0))
        assert all(np.array_equal(plain.shapes[k].values, never.shapes[k].values) for k in plain.shapes)
        assert all(np.array_equal(plain.poses[k], never.poses[k]) for k in plain.poses)
        assert not never.from_meshes

    def test_same_person_same_bytes(self, library: MeshLibrary) -> None:
        first, second = (build_spine(person(5), 2.0, library) for _ in range(2))
        assert first.from_meshes
        assert all(np.array_equal(first.shapes[k].values, second.shapes[k].values) for k in first.shapes)
        assert all(np.array_equal(first.poses[k], second.poses[k]) for k in first.poses)

    def test_landmarks_do_not_depend_on_the_lattice(self, library: MeshLibrary) -> None:
        fine, coarse = (build_spine(person(5), spacing, library) for spacing in (COARSE, 3.0))
        for level, marks in fine.landmarks.items():
            assert all(np.allclose(at, coarse.landmarks[level][name]) for name, at in marks.items())

    def test_the_share_is_kept(self, made: MeshSet) -> None:
        some = MeshLibrary((made,), share=0.5)
        drawn = [build_spine(person(seed), 4.0, some).from_meshes for seed in range(16)]
        assert 3 <= sum(drawn) <= 13

    def test_neighbours_keep_apart(self, spine: Spine) -> None:
        for level in range(1, 8):
            shape, other = spine.shapes[level], spine.shapes[level + 1]
            index = np.argwhere(shape.values < 0)[:, ::-1]
            local = index * shape.spacing + shape.origin
            relative = np.linalg.inv(spine.poses[level + 1]) @ spine.poses[level]
            there = (local @ relative[:3, :3].T + relative[:3, 3]).astype(np.float32)
            assert float(other.sample(there).min()) > -0.2, f"{level} in {level + 1}"

    def test_joints_do_not_gape(self, spine: Spine) -> None:
        for level in range(2, 7):
            relative = np.linalg.inv(spine.poses[level + 1]) @ spine.poses[level]
            lower = spine.landmarks[level + 1]["body_superior"]
            gap = (relative[:3, :3] @ spine.landmarks[level]["body_inferior"] + relative[:3, 3] - lower)[2]
            assert 0.0 < gap < 8.0
            assert 10.0 < np.linalg.norm(relative[:3, 3]) < 26.0

    def test_landmarks_lie_on_bone_and_the_canal_is_open(self, spine: Spine) -> None:
        for level in range(3, 8):
            marks, shape = spine.landmarks[level], spine.shapes[level]
            for name in ("body_left", "lamina_right", "pillar_left", "spinous_base"):
                assert shape.sample(marks[name][None].astype(np.float32))[0] < 2.0, f"{name} of {level}"
            assert shape.sample(marks["canal"][None].astype(np.float32))[0] > 3.5
        dens = (spine.landmarks[2]["dens_base"] + spine.landmarks[2]["dens_tip"])[None] / 2
        assert spine.shapes[2].sample(dens.astype(np.float32))[0] < 0

    def test_left_is_left(self, spine: Spine) -> None:
        for marks in spine.landmarks.values():
            assert marks["transverse_tip_left"][0] - marks["transverse_tip_right"][0] > 35

    def test_size_follows_the_person(self, library: MeshLibrary) -> None:
        small, large = (build_spine(replace(person(7), scale=s), 3.0, library) for s in (0.85, 1.1))
        ratio = [large.landmarks[k]["body_left"][0] / small.landmarks[k]["body_left"][0] for k in range(3, 8)]
        assert np.mean(ratio) == pytest.approx(1.1 / 0.85, rel=0.1)

    def test_fused_bodies_are_bridged(self, library: MeshLibrary) -> None:
        fused = build_spine(replace(person(8), fused=(4,)), COARSE, library)
        ends = [
            fused.poses[k] @ np.append(fused.landmarks[k][name], 1.0)
            for k, name in ((4, "body_inferior"), (5, "body_superior"))
        ]
        local = np.linalg.inv(fused.poses[4]) @ ((ends[0] + ends[1]) / 2)
        assert fused.shapes[4].sample(local[None, :3].astype(np.float32))[0] < 0.5

    def test_a_scene_shows_every_vertebra(self, library: MeshLibrary) -> None:
        scene = make_scene(12, fractures="none", shape_spacing=COARSE, meshes=library)
        corners = [scene.vertebra_box(level) for level in range(1, 8)]
        low, high = np.min([c[0] for c in corners], axis=0), np.max([c[1] for c in corners], axis=0)
        shown = scene.render(Grid.axis_aligned((low + high) / 2, high - low, 3.0))
        assert set(range(1, 8)) <= set(np.unique(shown.labels).tolist())

    @pytest.mark.parametrize("share", [-0.1, 1.5])
    def test_shares_are_checked(self, made: MeshSet, share: float, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            MeshLibrary((made,), share)
        with pytest.raises(UsageError):
            Cohort(tmp_path, mesh_share=share)

    def test_a_set_of_studies_remembers_its_meshes(self, tmp_path: Path) -> None:
        folder = tmp_path / "bones"
        folder.mkdir()
        Cohort(tmp_path / "out", meshes=(boxes(folder),)).begin()
        Cohort(tmp_path / "out", meshes=(folder,)).begin()
        with pytest.raises(UsageError, match="other settings"):
            Cohort(tmp_path / "out").begin()


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["bodyparts3d", "artisynth"])
def test_published_sets_become_people(shared_data: Path, name: str) -> None:
    library = MeshLibrary.load([shared_data / "meshes" / name], share=1.0)
    spine = build_spine(person(1), 1.1, library)
    assert spine.from_meshes
    for level in range(1, 8):
        relative = np.linalg.inv(spine.poses[level + 1]) @ spine.poses[level]
        shape = spine.shapes[level]
        local = np.argwhere(shape.values < 0)[:, ::-1] * shape.spacing + shape.origin
        there = (local @ relative[:3, :3].T + relative[:3, 3]).astype(np.float32)
        assert float(spine.shapes[level + 1].sample(there).min()) > -0.2
    for level in range(2, 8):
        canal = spine.landmarks[level]["canal"][None].astype(np.float32)
        assert spine.shapes[level].sample(canal)[0] > 4.0
