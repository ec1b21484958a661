"""Import Hugging Face datasets and Label Studio exports into a captioned folder; the sources are only read."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from data import captioned_folder
from data.captioned_folder import Pair
from data.config import FolderOptions
from data.errors import InputError, Problem, quoted
from data.folder_scan import FolderScan, scan_folder
from data.images import FORMATS, SUFFIXES, decode, read_bytes
from data.metadata_table import CAPTION_KEYS, CAPTION_NAMES, Table, add_row
from data.progress import ProgressBar
from data.schema import Annotation

SHARD = re.compile(r"-\d+-of-\d+$")
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


def import_folder(
    source: Path, into: Path, *, pictures: Path | None = None, options: FolderOptions = captioned_folder.DEFAULTS
) -> list[Problem]:
    """Write `source` as a captioned folder `into`, which must be new, and return its problems.

    source: a Hugging Face dataset (save_to_disk), a Label Studio export (JSON; `pictures`: the folder of its
    images), or a captioned folder. Raises InputError if there is nothing to import; then no folder appears.
    """
    problems: list[Problem] = []
    if source.is_file():
        pairs = read_label_studio(source, pictures, problems)
    elif is_hf_dataset(source):
        pairs = read_hf_dataset(source, problems)
    else:
        folder = captioned_folder.read_folder(source, options)
        problems += [problem for problem in folder.problems if problem.refused]  # warnings come again with the copy
        problems += captioned_folder.skipped_warning(folder)
        pairs = ((sample.path, sample.annotation) for sample in folder.samples)
    captioned_folder.write_folder(into, require_rows(pairs, source, problems))
    return problems


def require_rows(pairs: Iterator[Pair], source: Path, problems: list[Problem]) -> Iterator[Pair]:
    """The pairs, with a progress bar; InputError if there is none, before a folder appears."""
    count = 0
    for pair in ProgressBar(pairs, "importing", unit="image", delay=captioned_folder.PROGRESS_DELAY):
        count += 1
        yield pair
    if not count:
        first = f"; first: {problems[0]}" if problems else ""
        raise InputError(f"holds no captioned image that can be used{first}", where=source)


def checked_annotations(values: dict[str, Any], where: str, problems: list[Problem]) -> list[Annotation]:
    """The annotation of valid values; else none, and their errors among the problems."""
    table = Table()
    add_row(table, values, where, dict)
    problems += [problem for problem in table.problems if problem.refused]
    return [row.annotation for row in table.rows]


# ---- Hugging Face datasets


def is_hf_dataset(folder: Path) -> bool:
    """Whether datasets.save_to_disk wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_hf_dataset(
    folder: Path, problems: list[Problem], options: FolderOptions = captioned_folder.DEFAULTS
) -> Iterator[Pair]:
    """Every row of every split: the image's own bytes, `text`, and all other columns that JSON can hold."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot be read as a Hugging Face dataset ({error})", where=folder) from error
    splits = dict(loaded.items()) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    for name, split in splits.items():
        image = next((key for key, kind in split.features.items() if isinstance(kind, datasets.Image)), None)
        image, text = choose_columns(split.column_names, image, folder, options)
        rows: Any = split.cast_column(image, datasets.Image(decode=False))
        yield from read_rows(rows, (image, text), str(name), folder, options.prompt, problems)


def read_parquet_files(
    source: Path, files: Sequence[Path], options: FolderOptions, problems: list[Problem]
) -> Iterator[Pair]:
    """Every row of parquet files in the Hub's layout, `train-00000-of-00002.parquet`, row group by row group."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    splits: dict[str, list[Any]] = {}
    for path in files:
        try:
            opened = parquet.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"is not a parquet file ({error})", where=path) from error
        splits.setdefault(SHARD.sub("", path.stem), []).append(opened)

    def rows(shards: list[Any]) -> Iterator[dict[str, Any]]:
        try:
            for shard in shards:
                for batch in shard.iter_batches(batch_size=16):
                    yield from batch.to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"is damaged ({str(error).strip()})", where=source, fix="Download it again.") from error

    for name, shards in splits.items():
        schema = shards[0].schema_arrow
        kinds = {field.name: field.type for field in schema}
        images = [key for key, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
        images += [key for key, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)]
        image, text = choose_columns(list(kinds), images[0] if images else None, source, options)
        split = name if len(splits) > 1 else ""
        yield from read_rows(rows(shards), (image, text), split, source, options.prompt, problems)


def choose_columns(
    names: Sequence[str], image: str | None, source: Path, options: FolderOptions
) -> tuple[str, str | None]:
    """The columns of images and of captions; without captions the options' prompt is that of each. Or InputError."""
    wanted = [options.caption_column] if options.caption_column else ["text", *CAPTION_KEYS, *CAPTION_NAMES]
    text = next((key for key in wanted if key in names), None)
    if image is None or (text is None and not options.prompt):
        what = f"has columns {', '.join(names)}: none is {'an image' if image is None else 'a text'}"
        fix = "Name that of the captions: --pictures.caption-column NAME." if image else None
        raise InputError(what, where=source, allowed="a column of images, and one named text or caption", fix=fix)
    return image, text


def read_rows(
    rows: Iterable[dict[str, Any]],
    columns: tuple[str, str | None],
    split: str,
    source: Path,
    prompt: str | None,
    problems: list[Problem],
) -> Iterator[Pair]:
    """The rows of a split that can be used; the others are among the problems. columns: of images, of captions."""
    for number, row in enumerate(rows):
        where = f"{source}: row {number}" + (f" of {split}" if split else "")
        try:
            content, values = read_row(row, *columns, split, number, prompt)
        except InputError as error:
            problems.append(Problem.of(error, where))
            continue
        yield from ((content, annotation) for annotation in checked_annotations(values, where, problems))


def read_row(
    row: dict[str, Any], image: str, text: str | None, split: str, number: int, prompt: str | None
) -> tuple[bytes, dict[str, Any]]:
    """The image's bytes and the values of the annotation of one row; a split's name is kept in the key `split`.

    prompt: of a set without a column of captions. The key `caption` stays, for templates.
    """
    stored: Any = row.pop(image) or {}
    stored = {"bytes": stored} if isinstance(stored, bytes) else stored
    content = stored.get("bytes")
    if content is None:
        what = "holds a path instead of an image" if stored.get("path") else "holds no image"
        raise InputError(what, fix="Save the dataset with its images in it.")
    suffix = FORMATS[decode(content, Path("its image"))[1].format][0]
    given = (row[text] if text else prompt) or ""
    if text is None and prompt == captioned_folder.FILE_NAME:
        given = captioned_folder.name_to_prompt(stored.get("path") or "")
    if (text and not isinstance(given, str)) or text == "text":
        row.pop(text)
    texts = [part for part in (given if isinstance(given, list) else [given]) if isinstance(part, str) and part.strip()]
    if not texts:
        raise InputError(f"has no caption in {text!r}")
    values = {key: value for key, value in row.items() if value is not None and is_json(value)}
    values |= {"file_name": f"{split}/{number:06}{suffix}".lstrip("/"), "text": texts[0]}
    return content, values | ({"split": split} if split else {}) | ({"texts": texts[1:]} if texts[1:] else {})


def is_json(value: Any) -> bool:
    """Whether metadata.jsonl can hold a column's value (not images, bytes and dates)."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


# ---- Label Studio


def read_label_studio(export: Path, pictures: Path | None, problems: list[Problem]) -> Iterator[Pair]:
    """The finished tasks of a Label Studio export in JSON (JSON_MIN and CSV drop skipped tasks), with provenance."""
    scan = scan_folder(pictures or export.parent)
    taken: dict[str, str] = {}
    for number, task in enumerate(read_export(export), start=1):
        name = f"task {task.get('id', number)}"
        where = f"{export}: {name}"
        try:
            image = find_task_image(task, scan, pictures)
            values, others = task_to_values(task, image)
            if image in taken:
                what = f"{quoted(image)} has a caption already ({taken[image]})"
                raise InputError(what, fix="Keep one of the two tasks.")
        except InputError as error:
            problems.append(Problem.of(error, where))
            continue
        if others:
            what = f"{others} older answer{'s' * (others > 1)} to this task ignored: the newest is used"
            problems.append(Problem(where, what, refused=False))
        for annotation in checked_annotations(values, where, problems):
            taken[image] = name
            yield scan.images[image], annotation


def read_export(export: Path) -> list[dict[str, Any]]:
    """The tasks of an export. Raises InputError if it is something else."""
    try:
        tasks = json.loads(read_bytes(export))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", where=export, fix="Export the project again as JSON.") from error
    fix = "Export the project as JSON (not JSON_MIN, CSV or TSV)."
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError("is not a list of tasks", where=export, fix=fix)
    if not all(isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list) for task in tasks):
        raise InputError("is not a Label Studio export in the format JSON", where=export, fix=fix)
    return tasks


def find_task_image(task: dict[str, Any], scan: FolderScan, pictures: Path | None) -> str:
    """The name of a task's image in the folder of images."""
    names = list(possible_names(task["data"]))
    for name in names:
        if (image := scan.find(name)) is not None:
            return image
    by_end = [known for known in scan.images if names and PurePosixPath(known).name == PurePosixPath(names[0]).name]
    if len(by_end) == 1:
        return by_end[0]
    fix = "Check that folder." if pictures else "Give the folder with the images (--pictures FOLDER)."
    raise InputError(f"no image {quoted(names[0] if names else '')} in {scan.folder}", fix=fix)


def possible_names(data: dict[str, Any]) -> Iterator[str]:
    """What a task's image may be called: file_name, the path in a local-files URL, an upload without its prefix."""
    if isinstance(data.get("file_name"), str):
        yield data["file_name"]
    for value in (data.get("image"), *data.values()):
        if not isinstance(value, str):
            continue
        url = urlsplit(value)
        path = parse_qs(url.query).get("d", [unquote(url.path)])[0]
        if PurePosixPath(path).suffix.lower() in SUFFIXES:
            plain = PurePosixPath(path)
            yield from (path.lstrip("/"), plain.name, UPLOADED.sub("", plain.name))


def task_to_values(task: dict[str, Any], name: str) -> tuple[dict[str, Any], int]:
    """The newest finished annotation of a task as the values of a row, and how many others there are."""
    finished = [item for item in task["annotations"] if isinstance(item, dict) and not item.get("was_cancelled")]
    if not finished:
        skipped = "was skipped" if task["annotations"] else "is not annotated yet"
        raise InputError(skipped, fix="Ignore this if it is intended.")
    newest = max(finished, key=lambda item: (str(item.get("updated_at", "")), item.get("id") or 0))
    values: dict[str, Any] = {"file_name": name, "source": "label-studio"}
    who = newest.get("completed_by")
    if who is not None:
        values["annotator"] = str(who.get("email", who.get("id")) if isinstance(who, dict) else who)
    for result in newest.get("result") or []:
        values |= result_to_values(result)
    return values, len(finished) - 1


def result_to_values(result: Any) -> dict[str, Any]:
    """The values of one control of the labeling screen: a text area is the caption unless a field has its name."""
    if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
        return {}
    field, value = str(result.get("from_name", "")), result["value"]
    texts = value.get("text")
    texts = [texts] if isinstance(texts, str) else [text for text in texts or [] if isinstance(text, str)]
    if texts and field in set(Annotation.model_fields) - {"text", "texts"}:
        return {field: texts[0]}
    if texts:
        return {"text": texts[0], "texts": texts[1:]} if texts[1:] else {"text": texts[0]}
    chosen = value.get("choices") or value.get("taxonomy")
    if isinstance(chosen, list) and chosen:
        return {field: chosen[0] if len(chosen) == 1 else chosen}
    return {field: value["rating"]} if "rating" in value else {}
