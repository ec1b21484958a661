"""The sub-commands of annotate.py. To add one: its options in config.py, a function here, and a line in COMMANDS."""

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from inspect import cleandoc
from pathlib import Path
from statistics import median
from typing import Any

from annotation import config
from annotation import drafts as drafting
from annotation import project as projects
from annotation.agreement import WINNERS, measure_agreement, side_by_side
from annotation.client import Client, back_up, connect
from annotation.doctor import diagnose
from annotation.environment import locked
from annotation.fix import edits_of, make_corrections, preview, undo
from annotation.history import add_corrections, read_corrections
from annotation.images import ImageFile, Selection, image_features, images_by_sha256, readable, select_images
from annotation.labeling_config import TRIAGE, check_types, invalid_type
from annotation.lint import captions_of, format_findings, lint, rules_by_image
from annotation.progress import format_progress, measure_progress, row
from annotation.pull import is_reachable, opened, pull, write_corrections, write_findings
from annotation.push import PushResult, push, pushed_images
from annotation.release import describe_changes, export, hash_json, join, read_release, release_name
from annotation.server import DATABASE, LOGIN, find_server, start_server, stop_server
from data.atomic_io import write_atomic
from data.captioned_folder import read_table
from data.cli import Options, parse
from data.errors import InputError, Problem, check_choice, printable, raise_all
from data.features import make_extractor
from data.folder_scan import scan_folder
from data.sample_set import sample_folder
from data.validate import EMBEDDED, load_tokenizer

NAMES_SHOWN = 5  # per line
EXPECTED = ("skip", "poor", "not captioned")  # beginnings of the reasons that --strict accepts
RELEASES = "releases.txt"
SOURCES = ("files", "model", "neighbours", "names")  # of drafts, in the default order
ALIASES = {"--json": "--as-json"}


def dispatch(argv: Sequence[str]) -> int:
    """Run a sub-command; without one, list them. Raises InputError for an unknown one."""
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print("usage: annotate.py COMMAND [--help | options]\n\nCaption images with Label Studio.\n")
        print("\n".join(f"  {name:<8} {summary}" for name, (summary, _, _) in COMMANDS.items()))
        print("\nstart here: python annotation/annotate.py start --images FOLDER")
        return 0
    name = check_choice(argv[0], COMMANDS, what="command", where="annotate.py")
    _, options, run = COMMANDS[name]
    description = cleandoc(options.__doc__ or "")
    return run(parse(options, argv[1:], prog=f"annotate.py {name}", description=description, aliases=ALIASES))


def print_row(name: str, text: str) -> None:
    print(f"{name:<11}{text}", flush=True)


def first_names(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


def name_flag(name: str) -> str:
    """` --name NAME` for the next command, if there are several projects."""
    return "" if len(projects.project_names()) == 1 else f" --name {shlex.quote(name)}"


def labeling_url(client: Client, number: int) -> str:
    """The address at which a screen shows one image after the other."""
    return f"{client.url}/projects/{number}/data?labeling=1"


# ---- start, stop, doctor, invite


def run_start(options: config.StartOptions) -> int:
    running = find_server(options.server)
    started = time.monotonic()
    server = start_server(options.server, port=options.port)
    how = "already running" if running else f"started in {time.monotonic() - started:.1f} s"
    print_row("server", f"{server.url}  ({how}, process {server.pid})")
    print_row("log in", f"{server.login.user}, password in {options.server / LOGIN}")
    with Client(server.url, server.login.token, server=server) as client:
        if options.images is not None:
            push_images(client, choose_project(options), options)
        else:
            print_labeling_urls(client)
    return 0


def print_labeling_urls(client: Client) -> None:
    """A line for each screen of the projects on this server, with the address to give to annotators."""
    local = [each for each in map(projects.load_project, projects.project_names()) if each.url is None]
    for project in local:
        try:
            projects.open_screens(client, project)
        except InputError as error:
            print_row("warning", str(error))
            continue
        for screen, number in project.in_order():
            print(f"{project.title(screen):<30} {labeling_url(client, number)}")
    if not local:
        print("next: python annotation/annotate.py push --images FOLDER")


def run_stop(options: config.StopOptions) -> int:
    running = find_server(options.server)
    if running is None and not (options.server / DATABASE).exists():
        print(f"no server was ever started in {options.server}")
        return 0
    if options.backup:
        print(f"backed up to {back_up(options.server, running)}")
    stopped = stop_server(options.server)
    print("stopped; next: python annotation/annotate.py start" if stopped else "the server was not running")
    return 0


def run_doctor(options: config.DoctorOptions) -> int:
    results = diagnose(options.server, options.url, options.token_file)
    print("\n".join(map(str, results)))
    return int(any(each.fix for each in results))


def run_invite(options: config.InviteOptions) -> int:
    with connect(folder=options.server) as client:
        if options.renew:
            client.retry(lambda sdk: sdk.organizations.reset_token())
        invite = client.retry(lambda sdk: sdk.organizations.invites.get_invite_link())
        assert client.server is not None, "connect without an address gives the local server"
        port = client.server.port
    print(f"{client.url}{invite.invite_url}")
    print(f"from another machine: ssh -N -L {port}:127.0.0.1:{port} THIS_MACHINE, then open the link there")
    return 0


# ---- push


def run_push(options: config.PushOptions) -> int:
    project = choose_project(options, options.url)
    with connect(project.url, options.token_file, folder=options.server) as client:
        push_images(client, project, options)
    return 0


def choose_project(options: config.ImageOptions, url: str | None = None) -> projects.Project:
    """The existing project with the changes that the options ask for, or a new one. Raises InputError."""
    images = options.images.expanduser() if options.images else None
    if options.name is None and images is None and not projects.project_names():
        images = sample_folder()
        print(f"no --images given: using the sample images in {images}")
    if images is not None and not images.is_dir():
        raise InputError("no such folder", where=f"--images {images}", fix="Give a folder of images.")
    name = options.name or (images.resolve().name if images else None)
    server = url.rstrip("/") if url else projects.LOCAL
    types = [each.strip() for given in options.types for each in given.split(",")]
    types = check_types(types) if types else []
    if name is not None and name not in projects.project_names():
        if images is None:
            known = ", ".join(projects.project_names()) or "none yet"
            raise InputError(f"no project {name!r}", where="--name", allowed=known, fix="Give --images to create it.")
        if not types:
            found = {row.annotation.type for row in read_table(scan_folder(images)).rows}
            types = sorted(each for each in found if each and not invalid_type(each))
        return projects.new_project(name, server, images, types)
    project = projects.load_project(name)
    if url and project.server != server:
        where = "the server of `annotate.py start`" if project.server == projects.LOCAL else project.server
        raise InputError(f"{project.name} is on {where}", where="--url", fix="Give another --name.")
    if images is not None and str(images.resolve()) != project.pictures:
        if options.name is None:
            fix = f"Give another --name, or --name {project.name} if the folder was moved."
            what = f"captions/{project.name} is for {project.pictures}"
            raise InputError(what, where=f"--images {images}", fix=fix)
        project = replace(project, pictures=str(images.resolve()))
    return replace(project, types=tuple(types) or project.types)


def push_images(client: Client, project: projects.Project, options: config.ImageOptions) -> None:
    """Select the images, write project.json, create the screens and push."""
    folder = project.folder
    with locked(folder / ".lock"):
        pushed = pushed_images(client, project)
        selection = select_images(Path(project.pictures), pushed, keep_duplicates=options.keep_duplicates)
        print_selection(selection)
        if options.strict and (selection.problems or selection.duplicates):
            raise InputError("images would be left out", where="--strict", fix="Fix or remove them; see above.")
        projects.save_project(project)  # before anything is created on the server: its key marks what is ours
        project = projects.create_screens(client, project)
        projects.save_project(project)
        drafts = drafting.read_drafts(folder)
        result = push(client, project, selection.samples, selection.formats, drafts=drafts, overlap=options.overlap)
        written, skipped = write_corrections(client, project, folder)
    if written or skipped:
        print_row("corrected", f"{len(written)} answers; {len(skipped)} changed by annotators since")
    print_push(client, project, result)


def print_selection(selection: Selection) -> None:
    """What is in the folder, and what is left out of it, by name."""
    print_row("images", f"{len(selection.samples)} in {printable(selection.folder)}, ordered by similarity")
    if pairs := [f"{printable(name)} (like {printable(other)})" for name, other in selection.duplicates.items()]:
        more = f" and {len(pairs) - NAMES_SHOWN} more" if len(pairs) > NAMES_SHOWN else ""
        print_row("duplicates", f"{len(pairs)} near-duplicates left out: {', '.join(pairs[:NAMES_SHOWN])}{more}")
    for problem in selection.problems[:NAMES_SHOWN]:
        print_row("left out", str(problem))
    if (more := len(selection.problems) - NAMES_SHOWN) > 0:
        print_row("left out", f"and {more} more; `python data/prepare.py` lists them")


def print_push(client: Client, project: projects.Project, result: PushResult) -> None:
    """What was pushed, with the address of each screen, and the next command."""
    for screen, number in project.in_order():
        counts = f"{result.created[screen]} new, {result.present[screen]} existing"
        title = project.title(screen).removeprefix(f"{project.name} ")
        print_row(title, f"{counts:<28}{labeling_url(client, number)}")
    for name, count, what in (
        ("drafts", result.drafted, "new or changed"),
        ("overlap", result.asked_twice, "tasks for two annotators"),
        ("moved", result.moved, "tasks have a new image address"),
        ("cleaned up", result.duplicates, "duplicate tasks deleted"),
        ("elsewhere", result.elsewhere, "tasks of images that are no longer in the folder; they stay"),
    ):
        if count:
            print_row(name, f"{count} {what}")
    if TRIAGE not in project.screens:
        print_row("no triage", "no types are known: --types water,fire,grass creates it")
    print(f"next: write captions in the browser, then python annotation/annotate.py pull{name_flag(project.name)}")


# ---- pull, status


def run_pull(options: config.PullOptions) -> int:
    project = projects.load_project(options.name)
    how = {"everything": options.everything, "accept_deleted": options.accept_deleted}
    with opened(project, options.server, options.token_file) as client:
        result = pull(client, project, project.folder, **how)
    print_row("pulled", str(result))
    statuses = ", ".join(f"{count} {status}" for status, count in result.statuses.most_common()) or "none"
    print_row("answers", f"{statuses}  ({project.folder / 'history.jsonl'})")
    for what, count in result.ignored.most_common():
        print_row("ignored", f"{what} ({count})")
    if screens := ", ".join(result.changed_screens):
        print_row("warning", f"the configuration of {screens} was changed on the server; `push` restores it")
    print(f"next: python annotation/annotate.py status{name_flag(project.name)}")
    return int(options.strict and bool(result.ignored or result.changed_screens))


def run_status(options: config.StatusOptions, *, wait: Callable[[float], None] = time.sleep) -> int:
    while options.watch:
        project = projects.open_project(options.name, options.images)
        news = watch_pull(project, options)
        print(f"{time.strftime('%H:%M:%S')} {project.name}, {news}\n{format_status(project, options)}\n", flush=True)
        wait(options.every)
    print(format_status(projects.open_project(options.name, options.images), options))
    return 0


def watch_pull(project: projects.Project, options: config.StatusOptions) -> str:
    """Pull, and describe the result. A server that is off for a while does not end the watch."""
    if not is_reachable(project, options.server):
        return "not pulled: the server is not running"
    try:
        with opened(project, options.server, options.token_file) as client:
            return str(pull(client, project, project.folder))
    except InputError as error:
        return f"not pulled: {error}"


def format_status(project: projects.Project, options: config.StatusOptions) -> str:
    """The status as lines or as JSON."""
    progress = measure_progress(project.history(), images_by_sha256(project.image_folder()) if project.pictures else {})
    answers = project.answers()
    agreement = measure_agreement(answers.captions())
    if options.as_json:
        scores: dict[str, Any] = {"pictures": agreement.images, "pairs": len(agreement.pairs)}
        scores |= {"token_f1": agreement.token_f1, "rouge_l": agreement.rouge_l} if agreement.pairs else {}
        return json.dumps(asdict(progress) | {"agreement": scores, "late_corrections": len(answers.late)}, indent=1)
    lines = format_progress(progress)
    if agreement.pairs:
        lines.append(row("agreement", f"{agreement} on {agreement.images} images with several captions"))
        lines.append(row("exported", WINNERS["central"]))
        lines += [f"    {line}" for pair in agreement.pairs[: options.worst] for line in side_by_side(pair)]
    if answers.late:
        lines.append(row("corrections", f"{len(answers.late)} not applied: the captions were changed since"))
    return "\n".join(lines)


# ---- draft, import


def run_draft(options: config.DraftOptions) -> int:
    project = projects.open_project(options.name, options.images, new=True)
    problems: list[Problem] = []
    images = {each.sha256: each for each in readable(images_by_sha256(project.image_folder()).values(), problems)}
    for problem in problems:
        print(problem)
    answered = {record.sha256 for record in project.history() if record.screen == "text"}
    old = drafting.read_drafts(project.folder)
    imports = options.captions is not None  # only another person's words replace a person's
    kept = {key for key, draft in old.items() if not options.refresh or (draft.score >= drafting.HUMAN and not imports)}
    wanted = [image for key, image in images.items() if key not in answered | kept]
    sources = draft_sources(options, project, images)
    drafts, forbidden = drafting.draft_all(wanted, sources, options, project.folder)
    print(f"drafted {len(drafts)} of {len(wanted)} images; {len(answered & set(images))} already have an answer")
    for source, count in Counter(draft.source for draft in drafts.values()).most_common():
        score = median(draft.score for draft in drafts.values() if draft.source == source)
        print(f"  {source}: {count} (median score {score:.2f})")
    for word, count in Counter(word for found in forbidden.values() for word in found).most_common():
        print(f"  forbidden {word!r} {'found in' if options.report else 'removed from'} {count} drafts")
    print(f"next: annotate.py push --name {project.name}    ({project.folder / drafting.DRAFTS})")
    return 0


def draft_sources(
    options: config.DraftOptions, project: projects.Project, images: Mapping[str, ImageFile]
) -> list[drafting.Source]:
    """The sources in the order in which they are tried. Raises InputError for one that lacks what it needs."""
    missing = {"files": options.captions is None, "model": options.model is None}
    sources: list[drafting.Source] = []
    for name in options.source or [name for name in SOURCES if not missing.get(name)]:
        check_choice(name, SOURCES, what="source", where="--source")
        if missing.get(name):
            fix = f"Give {'--captions PATH' if name == 'files' else '--model FOLDER'}."
            raise InputError(f"source {name!r} needs something to read", where="--source", fix=fix)
        if name == "files" and options.captions is not None:
            problems: list[Problem] = []
            sources.append(drafting.from_files(options.captions.expanduser(), problems))
            for problem in problems:
                print(problem)
        elif name == "model" and options.model is not None:
            sources.append(drafting.from_model(options.model, download=options.download, start=options.start))
        elif name == "neighbours":
            texts = {answer.record.sha256: answer.text for answer in project.answers().captions()}
            captioned = [(images[key], text) for key, text in sorted(texts.items()) if key in images]
            extractor = make_extractor(options.extractor)
            sources.append(drafting.from_neighbours(captioned, extractor, threshold=options.threshold))
        else:
            sources.append(drafting.from_file_names())
    return sources


def run_import(options: config.ImportOptions) -> int:
    values = options.model_dump(include={"name", "images", "prefix"})
    return run_draft(config.DraftOptions(**values, captions=options.source, source=("files",), refresh=True))


# ---- lint, fix


def run_lint(options: config.LintOptions) -> int:
    project = projects.open_project(options.name, options.images)
    captions = captions_of(project.answers())
    features = {}
    if project.pictures and "neighbours" not in options.leave_out:
        captioned = {caption.sha256 for caption in captions}
        images = [image for sha256, image in images_by_sha256(project.image_folder()).items() if sha256 in captioned]
        features = image_features(images, options.extractor)
    tokenizer = load_tokenizer(options.tokenizer or EMBEDDED)
    findings, checks = lint(
        captions, options, tokenizer=tokenizer, types=options.types or project.types, features=features
    )
    by_image = rules_by_image(findings, captions)
    if options.as_json:
        print(json.dumps({"findings": [finding.as_json() for finding in findings], "pictures": by_image}, indent=1))
    else:
        print("\n".join(format_findings(findings, captions, checks)))
    if options.mark:
        print(mark_findings(project, options, by_image), file=sys.stderr if options.as_json else sys.stdout)
    return int(bool(findings))


def mark_findings(project: projects.Project, options: config.LintOptions, by_image: Mapping[str, str]) -> str:
    """Show the findings on the server. A server that cannot be reached is reported, not an error."""
    if not is_reachable(project, options.server):
        return "not marked on the server, which is not running"
    try:
        with opened(project, options.server, options.token_file) as client:
            count = write_findings(client, project, by_image)
    except InputError as error:
        return f"not marked on the server: {error}"
    return f"on the server: {count} tasks changed in the column `lint`, which can be filtered"


def run_fix(options: config.FixOptions) -> int:
    edits = edits_of(options)
    project = projects.open_project(options.name)
    answers, past = project.answers(), read_corrections(project.folder)
    if late := [each.file_name for each in answers.late]:
        print(f"{len(late)} earlier corrections not applied: the captions were changed since ({first_names(late)})")
    if options.undo:
        corrections, late = undo(answers, past)
        print(f"undoing the last correction: {len(corrections)} captions, {len(late)} changed since")
    else:
        corrections = make_corrections(edits, answers, past, options)
    print("\n".join(preview(corrections[: options.show])) or "no caption would change")
    if len(corrections) > options.show:
        print(f"... and {len(corrections) - options.show} more (--show {len(corrections)})")
    if not corrections:
        return 0
    if not (options.apply or options.undo):
        print(f"{len(corrections)} captions would change. Nothing is changed yet: add --apply")
        return 0
    add_corrections(project.folder, corrections)
    print(f"{len(corrections)} captions changed. Undo it: annotate.py fix --undo")
    if not is_reachable(project, options.server):
        print("on the server: not yet, as it is not running; the next fix --apply or push changes them there")
        return 0
    with opened(project, options.server, options.token_file) as client:
        _, skipped = write_corrections(client, project, project.folder)
    left = len({each.key for each in corrections} & {answer.record.key for answer in skipped})
    print(f"on the server: {len(corrections) - left} changed, {left} changed by annotators since")
    return 0


# ---- export


def run_export(options: config.ExportOptions) -> int:
    project = projects.open_project(options.name, options.images)
    answers = project.answers()
    joined = join(answers, images_by_sha256(project.image_folder()), options)
    if options.strict:
        lost = {reason: names for reason, names in joined.left_out.items() if not reason.startswith(EXPECTED)}
        raise_all([InputError(f"{reason}: {len(names)} images", where=names[0]) for reason, names in lost.items()])
    name = options.release or release_name(joined.rows)
    if not name.strip() or name.startswith(".") or set("/\\") & set(name) or not name.isprintable():
        raise InputError(f"{name!r} is not a release name", where="--release", allowed="the name of a folder")
    folder = options.into or project.folder / "releases" / name
    agreement = measure_agreement(answers.captions())
    config_hash = hash_json(project.configurations) if project.configurations else ""
    lock, new = export(joined, folder, name=name, options=options, agreement=agreement, config_hash=config_hash)
    pictures, captions = lock["counts"]["pictures"], lock["counts"]["captions"]
    for reason, names in joined.left_out.items():
        print(f"  left out, {printable(reason)}: {len(names)} ({first_names(names)})")
    if answers.late:
        print(f"  {len(answers.late)} corrections not applied: the captions were changed since")
    print(f"release {name}: {pictures} images, {captions} captions; {'written' if new else 'exists already'}")
    print_changes(project, folder.resolve(), name, options.since)
    quoted = shlex.quote(str(folder))
    print(f"\nnext: python data/prepare.py {quoted}\n      python train/finetune.py --data {quoted}")
    return 0


def print_changes(project: projects.Project, folder: Path, name: str, since: Path | None) -> None:
    """How the release differs from `since` or from the one exported before, which releases.txt names."""
    log = project.folder / RELEASES
    past = [Path(line) for line in log.read_text(encoding="utf-8").split("\n") if line] if log.exists() else []
    earlier = [path for path in past if path != folder and path.is_dir()]
    before = since or (earlier[-1] if earlier else None)
    old = read_release(before) if before is not None else None
    if old is not None and old.name != name:
        print("\n".join(describe_changes(old, read_release(folder))))
    if folder not in past:
        write_atomic(log, "".join(f"{path}\n" for path in (*past, folder)))


COMMANDS: dict[str, tuple[str, type[Options], Callable[[Any], int]]] = {
    "start": ("start the server, and push a folder of images to it", config.StartOptions, run_start),
    "stop": ("back up and stop the server", config.StopOptions, run_stop),
    "doctor": ("diagnose problems and suggest fixes", config.DoctorOptions, run_doctor),
    "invite": ("print the sign-up link for another annotator", config.InviteOptions, run_invite),
    "push": ("put images and drafts on the server; nothing is created twice", config.PushOptions, run_push),
    "pull": ("fetch new and changed answers", config.PullOptions, run_pull),
    "draft": ("make draft captions for annotators to correct", config.DraftOptions, run_draft),
    "import": ("import existing captions as drafts", config.ImportOptions, run_import),
    "status": ("show progress, speed and the time left", config.StatusOptions, run_status),
    "lint": ("check captions for length, wording and duplicates", config.LintOptions, run_lint),
    "fix": ("find and replace in all captions, with preview and undo", config.FixOptions, run_fix),
    "export": ("export the dataset that finetune.py trains on", config.ExportOptions, run_export),
}
