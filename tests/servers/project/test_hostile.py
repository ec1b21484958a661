"""Hostile input: odd texts, path traversal, wrong tokens, a busy port, leaking secrets."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from annotation import project, pull, server
from annotation.cli import dispatch
from annotation.client import Client, back_up, connect
from annotation.history import read_history
from annotation.images import Selection
from annotation.push import push
from data import captioned_folder
from data.errors import InputError
from tests.servers.project.conftest import COUNT, Make, answer, tasks_of

pytestmark = [
    pytest.mark.servers,
    pytest.mark.usefixtures("captions_alone"),
    pytest.mark.filterwarnings("ignore:The `parse_obj` method:DeprecationWarning"),  # in the SDK, as it refreshes
]


def test_odd_texts_are_pulled_unchanged(
    label_studio: server.Server, client: Client, selection: Selection, make: Make,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = make(name="odd")
    project.save_project(found)
    push(client, found, selection.samples, selection.formats)
    texts = [
        "<script>alert(1)</script><img src=x onerror=alert(2)>",
        "a" * 100_000,
        "many words " * 10_000,
        '=HYPERLINK("http://127.0.0.1")\r\n\'; DROP TABLE task; --',
        "\u202eback to front\u2028new line\ttab {{ template }} ${PATH} \\",
    ]
    tasks = tasks_of(client, found)
    numbers = [answer(client, task, text) for task, text in zip(tasks, texts, strict=False)]
    done = pull.pull(client, found, project.work_folder("odd"))
    records = {record.annotation: record for record in read_history(project.work_folder("odd"))}
    assert [records[number].values["text"] for number in numbers] == [[text] for text in texts]
    assert not done.ignored

    checks = ["lint", "--server", str(label_studio.folder)]
    for command in (["status"], checks, ["fix", "--find", "a", "--replace", "b"], ["export", "--into", "release"]):
        dispatch(command)
        said = capsys.readouterr().out
        assert len(said) < 20_000 and all(char.isprintable() or char == "\n" for char in said), command
    exported = [sample.annotation.text for sample in captioned_folder.read_folder(Path("release")).samples]
    assert sorted(exported) == sorted(text.strip() for text in texts)


def test_path_traversal_in_names_is_ignored(client: Client, selection: Selection, make: Make, tmp_path: Path) -> None:
    """Anybody may add tasks on the server, with any content."""
    found = make()
    push(client, found, selection.samples, selection.formats)
    names = ["../../etc/passwd", "/etc/passwd", "a/../../b.png"]
    for index, name in enumerate(names):
        data = {"image": "/x", "file_name": name, "sha256": f"{index:064x}"}
        task = client.sdk.tasks.create(project=found.screens["text"], data=data)
        item = {"id": "x", "from_name": "text", "to_name": "image", "type": "textarea", "value": {"text": ["mine"]}}
        client.sdk.annotations.create(id=task.id, result=[item])  # type: ignore[arg-type]
    done = pull.pull(client, found, tmp_path)
    assert read_history(tmp_path) == []
    assert {name for name in names if any(name in what for what in done.ignored)} == set(names)
    assert done.ignored["answer to a task that push did not create"] == 3
    again = pull.pull(client, found, tmp_path)
    assert (again.new, again.deleted) == (0, 0)


def test_a_backup_of_a_path_as_title_stays_in_its_folder(
    client: Client, label_studio: server.Server, make: Make, selection: Selection
) -> None:
    client.sdk.projects.create(title="../../climbs")
    found = make()
    push(client, found, selection.samples, selection.formats)
    folder = back_up(label_studio.folder, label_studio)
    copies = {path.name.partition("-")[2]: path for path in folder.iterdir()}
    assert "_climbs.json" in copies
    (captions,) = [path for name, path in copies.items() if name == f"{found.title('text')}.json"]
    assert len(json.loads(captions.read_text())) == COUNT
    assert (folder / server.DATABASE).stat().st_size > 1 << 20
    assert folder.parent == label_studio.folder / "backups" and folder.parent.stat().st_mode & 0o077 == 0


# ---- tokens


@pytest.fixture(scope="module")
def personal_token(client: Client) -> str:
    """A personal access token, as users create it under Account & Settings."""
    return str(client.sdk.tokens.create().token)


@pytest.fixture
def token_file(personal_token: str, tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(personal_token + "\n")
    return file


def test_images_are_uploaded_to_another_server(
    label_studio: server.Server, selection: Selection, token_file: Path, tmp_path: Path
) -> None:
    """The tests' server, used by its address and a personal access token, as any other server."""
    with connect(label_studio.url, token_file) as client:
        assert not client.legacy_token and client.server is None
        found = project.create_screens(client, project.new_project("sent", label_studio.url, selection.folder, ()))
        assert push(client, found, selection.samples, selection.formats).created["text"] == COUNT
        again = push(client, found, selection.samples, selection.formats)
        assert again.created["text"] == again.moved == 0
        assert len(client.sdk.files.list(id=found.screens["text"], all_=True)) == COUNT, "a picture was sent twice"
        tasks = tasks_of(client, found)
        shown = client.http.get(client.url + tasks[0].data["image"], headers=client.sdk._client_wrapper.get_headers())
        assert shown.content == next(e for e in selection.samples if e.sha256 == tasks[0].sha256).path.read_bytes()
        answer(client, tasks[0], "from afar")
        assert pull.pull(client, found, tmp_path).new == 1


@pytest.mark.parametrize("kind", ["legacy", "personal"])
def test_a_wrong_token_is_one_line_without_the_token(
    label_studio: server.Server, personal_token: str, tmp_path: Path, kind: str
) -> None:
    head, body, _ = personal_token.split(".")
    wrong = "0123456789abcdef" * 2 + "01234567" if kind == "legacy" else f"{head}.{body}.{'x' * 43}"
    (tmp_path / "token").write_text(wrong)
    with pytest.raises(InputError, match="access token") as raised:
        connect(label_studio.url, tmp_path / "token")
    said = str(raised.value)
    assert "Account & Settings" in said and "\n" not in said
    assert wrong not in said and wrong[-20:] not in said
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


@pytest.fixture
def without_old_tokens(label_studio: server.Server, token_file: Path) -> Iterator[None]:
    """The default since Label Studio 1.17."""
    with connect(label_studio.url, token_file) as admin:
        admin.sdk.jwt_settings.update(api_token_ttl_days=200, api_tokens_enabled=True, legacy_api_tokens_enabled=False)
        yield
        admin.sdk.jwt_settings.update(api_token_ttl_days=200, api_tokens_enabled=True, legacy_api_tokens_enabled=True)


@pytest.mark.usefixtures("without_old_tokens")
def test_a_disabled_legacy_token(label_studio: server.Server, tmp_path: Path) -> None:
    (tmp_path / "old").write_text(label_studio.login.token)
    with pytest.raises(InputError, match=r"legacy.*personal access token"):
        connect(label_studio.url, tmp_path / "old")


def test_secrets_stay_secret(
    label_studio: server.Server, client: Client, make: Make, selection: Selection, personal_token: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Not in the output, not in the process list, not in a file that others may read."""
    secrets = [label_studio.login.token, label_studio.login.password, personal_token.rpartition(".")[2]]
    monkeypatch.chdir(tmp_path)
    own = ["--server", str(label_studio.folder)]
    for command in (["start", *own, "--images", str(selection.folder)], ["pull", *own], ["doctor", *own]):
        dispatch(command)
    printed = capsys.readouterr()
    shown = printed.out + printed.err + " ".join(psutil.Process(label_studio.pid).cmdline())
    assert not any(secret in shown for secret in secrets)
    written = [*tmp_path.rglob("*"), *label_studio.folder.rglob("*")]
    open_to_all = [path for path in written if path.is_file() and path.stat().st_mode & 0o077]
    for path in [*open_to_all, label_studio.folder / server.LOG]:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path
