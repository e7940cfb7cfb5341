"""Places: folders, file URIs and remote file systems behave alike, and nothing half-written is seen."""

import pickle

import pyarrow.fs as pafs
import pytest

from evoray.errors import EvorayError, UserError
from evoray.store.location import Location


def remote(folder) -> Location:
    """A file system that is not taken for local."""
    folder.mkdir(exist_ok=True)
    return Location.inside(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "bucket", "mem://bucket")


def make(kind, folder) -> Location:
    match kind:
        case "path":
            return Location.parse(folder)
        case "text":
            return Location.parse(str(folder))
        case "uri":
            return Location.parse(folder.as_uri())
        case "localhost":
            return Location.parse(f"file://localhost{folder}")
    return remote(folder)


KINDS = ["path", "text", "uri", "localhost", "remote"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_and_go(kind, tmp_path):
    place = make(kind, tmp_path / "a b") / "deep" / "folder"
    file = place / "x.json"
    assert place.is_local == (kind != "remote")
    assert (place.exists(), place.list(), file.size()) == (False, [], None)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    with pytest.raises(FileNotFoundError):
        file.download(tmp_path / "copy")
    file.write_bytes(b"one")
    file.write_bytes(b"two!")
    assert (file.read_bytes(), file.size(), file.exists(), place.exists()) == (b"two!", 4, True, True)
    assert place.size() is None
    (tmp_path / "local").write_bytes(b"three")
    (place / "y").upload_file(tmp_path / "local")
    (place / "sub" / "z").write_bytes(b"")
    assert place.list() == ["sub", "x.json", "y"]
    (place / "y").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "local").read_bytes() == b"three"
    file.delete()
    file.delete()
    assert place.list() == ["sub", "y"]
    assert file.name == "x.json"
    copy = pickle.loads(pickle.dumps(place))
    assert (copy, copy.list()) == (place, ["sub", "y"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_while_it_is_written_leaves_the_old_file(kind, tmp_path):
    file = make(kind, tmp_path / "store") / "file"
    file.write_bytes(b"old")

    def fail():
        with file.staged() as path:
            path.write_bytes(b"ne")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert file.read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["file"]


def test_half_written_files_are_neither_listed_nor_kept(tmp_path):
    place = Location.parse(tmp_path)
    with (place / "file").staged() as path:
        path.write_bytes(b"half")
        (tmp_path / ".hidden").write_bytes(b"")
        assert place.list() == [".hidden"]
        assert path.parent == tmp_path
        place.remove_temporary()
        assert not path.exists()
        path.write_bytes(b"whole")
    assert place.list() == [".hidden", "file"]


def test_all_ways_to_write_a_folder_name_the_same_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = Location.parse(tmp_path / "a b")
    for text in ("a b", "./a b/", "x/../a b", "~/a b", tmp_path.as_uri() + "/a%20b", f"file:///{tmp_path}/a b"):
        found = Location.parse(text)
        assert found == wanted
        assert str(found) == str(found.local_path) == str(tmp_path / "a b")
    assert Location.parse(wanted) is wanted


def test_a_query_stays_behind_the_path():
    filesystem = pafs.LocalFileSystem()
    place = Location.inside(filesystem, "bucket/store", "s3://bucket/store?region=x") / "layers" / "a.arrow"
    assert (place.uri, place.path) == ("s3://bucket/store/layers/a.arrow?region=x", "bucket/store/layers/a.arrow")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a place is empty"),
        ("nonsense://bucket/x", "cannot use nonsense://bucket/x"),
        ("file://elsewhere/x", "names the host 'elsewhere'"),
        ("s3://", "names no bucket"),
        ("s3://AKIAKEY:hidden@bucket/x", r"s3://\*\*\*@bucket/x holds credentials"),
        ("s3://bucket/x?secret_key=hidden", r"s3://bucket/x\?\*\*\* holds credentials"),
    ],
)
def test_bad_places_give_one_line_without_secrets(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Location.parse(text)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_place_that_is_no_folder_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*file/x: .*give a place that may be read and written"):
        (Location.parse(tmp_path / "file") / "x").write_bytes(b"")


class Failing(pafs.FileSystemHandler):
    """A file system whose every answer is one error."""

    def __init__(self, text):
        self.text = text

    def fail(self, *arguments, **named):
        raise OSError(self.text)

    def get_type_name(self):
        return "failing"

    normalize_path = create_dir = delete_dir = delete_dir_contents = fail
    delete_root_dir_contents = delete_file = move = copy_file = get_file_info = get_file_info_selector = fail
    open_input_stream = open_input_file = open_output_stream = open_append_stream = fail


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AWS Error ACCESS_DENIED during GetObject\nmore", UserError),
        ("AWS Error NO_SUCH_BUCKET during PutObject", UserError),
        ("Unable to load credentials, key is topsecretvalue", UserError),
        ("AWS Error NETWORK_CONNECTION: topsecretvalue", EvorayError),
    ],
)
def test_object_stores_errors_say_whose_they_are_and_hide_secrets(text, kind, monkeypatch, impatient):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretvalue")
    place = Location.inside(pafs.PyFileSystem(Failing(text)), "bucket/x", "s3://bucket/x")
    for call in (place.read_bytes, place.exists, place.list, place.delete, place.size, lambda: place.write_bytes(b"x")):
        with pytest.raises(EvorayError) as caught:
            call()
        assert type(caught.value) is kind
        assert "s3://bucket/x" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "topsecretvalue" not in str(caught.value)


class Short(pafs.FileSystemHandler):
    """An object store that lost the end of what it was given; only what an upload touches is answered."""

    def __init__(self, inner):
        self.inner = inner

    def get_type_name(self):
        return "short"

    def normalize_path(self, path):
        return path

    def create_dir(self, path, recursive):
        self.inner.create_dir(path, recursive=recursive)

    def open_output_stream(self, path, metadata):
        return self.inner.open_output_stream(path)

    def get_file_info(self, paths):
        return [pafs.FileInfo(path, pafs.FileType.File, size=1) for path in paths]

    def delete_file(self, path):
        self.inner.delete_file(path)

    def fail(self, *arguments, **named):
        raise NotImplementedError

    delete_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = fail
    get_file_info_selector = open_input_stream = open_input_file = open_append_stream = fail


def test_an_upload_of_another_size_is_an_error(tmp_path, impatient):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "x").write_bytes(b"old")
    filesystem = pafs.PyFileSystem(Short(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())))
    with pytest.raises(EvorayError, match=r"cannot write s3://bucket/x: it has 1 bytes after an upload of 5"):
        Location.inside(filesystem, "bucket/x", "s3://bucket/x").write_bytes(b"hello")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "bucket").iterdir()] == [("x", b"old")]


def test_the_parent_is_what_its_child_came_from(tmp_path) -> None:
    folder = Location.parse(tmp_path) / "run"
    assert ((folder / "best.json").parent, (folder / "best.json").parent.path) == (folder, folder.path)
    bucket = Location.inside(pafs.LocalFileSystem(), f"{tmp_path}/bucket", "memory://bucket?region=x")
    log = bucket / "logs" / "driver.log"
    assert (log.parent.uri, log.parent.path) == ("memory://bucket/logs?region=x", f"{tmp_path}/bucket/logs")
    assert log.parent / "driver.log" == log
