"""The options of every annotate.py sub-command. The docstring of a class is the description that --help prints."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.cli import Options, positional

SERVER_FOLDER = Path("captions") / ".server"
Winner = Literal["central", "newest", "first"]


class ProjectOptions(Options):
    name: str | None = None
    """project, a folder in captions/; default: the only one"""


class ProjectImageOptions(ProjectOptions):
    images: Path | None = None
    """image folder, if it is not where the project says"""


class NewProjectOptions(Options):
    name: str | None = None
    """project, a folder in captions/; default: the name of the image folder, or the only project"""
    images: Path | None = None
    """image folder; default: the project's"""


class LocalServerOptions(Options):
    server: Path = SERVER_FOLDER
    """folder of the server's database, login and log"""


class ServerOptions(LocalServerOptions):
    token_file: Path | None = None
    """file with the access token of a server that `start` did not start; default: $LABEL_STUDIO_API_KEY"""


class UrlOptions(ServerOptions):
    url: str | None = None
    """address of an existing Label Studio; default: the server that `start` starts"""


class ImageOptions(NewProjectOptions):
    images: Path | None = None
    """image folder; default: the project's; the sample images if there is no project yet"""
    types: list[str] = Field(default_factory=list)
    """types to choose from in the triage, e.g. --types water,fire; default: the project's, else those in the \
folder's metadata; without types there is no triage"""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """share of the caption tasks given to two annotators"""
    keep_duplicates: bool = False
    """push near-duplicates too, such as an image and its mirror image"""
    strict: bool = False
    """push nothing if any image would be left out"""


class StartOptions(LocalServerOptions, ImageOptions):
    """Start Label Studio on this machine and, with --images, push a folder of images to it.

    The first start installs Label Studio in its own environment (1 to 3 minutes, 1 GB). Later starts take seconds.
    """

    port: int | None = Field(default=None, ge=1, le=65535)
    """port on 127.0.0.1; default: the last one used, else the first free one from 8080"""


class StopOptions(LocalServerOptions):
    """Stop the server after backing up its database and every project to captions/.server/backups.

    Nothing is lost: the next start continues where you left off.
    """

    backup: bool = True
    """back up first"""


class DoctorOptions(UrlOptions):
    """Check the server, its login, its database and its images, and suggest fixes.

    Exit code 0: everything works. 1: something needs fixing.
    """


class InviteOptions(LocalServerOptions):
    """Print the link with which another annotator signs up. There is no other way to sign up."""

    renew: bool = False
    """create a new link; the old one stops working"""


class PushOptions(UrlOptions, ImageOptions):
    """Put images and their drafts on the server. The image folder is only read.

    Run it again after adding images or drafts, or after an interruption: nothing is created twice.
    """


class PullOptions(ServerOptions, ProjectOptions):
    """Fetch new and changed answers into captions/NAME/history.jsonl."""

    everything: bool = False
    """read every answer again, not only those that changed"""
    accept_deleted: bool = False
    """continue although most answers are gone from the server; the history keeps them, marked as deleted"""
    strict: bool = False
    """exit 1 if anything on the server is not as push created it"""


class DraftOptions(NewProjectOptions):
    """Make draft captions for annotators to correct: from a model, from files, from similar images or from file names.

    Sources are tried in order until one has a draft. Images that already have an answer are not drafted.
    """

    source: tuple[str, ...] = ()
    """files, model, neighbours or names, tried in the given order; default: all that have what they need"""
    captions: Path | None = None
    """for files: existing captions, see `import`"""
    model: str | None = None
    """for model: local folder or hub id of an image-to-text model such as BLIP"""
    download: bool = False
    """download the model from the hub if it is not on this machine"""
    start: str = ""
    """words that the model's captions begin with"""
    threshold: float = Field(default=0.5, ge=-1, le=1)
    """minimum similarity of a captioned image to count as a neighbour"""
    extractor: str = "descriptors"
    """features for comparing images: descriptors or pixels"""
    prefix: str = ""
    """text that every draft begins with"""
    forbidden: tuple[str, ...] = ()
    """word or phrase to remove from drafts; may be repeated"""
    report: bool = False
    """report forbidden words instead of removing them"""
    refresh: bool = False
    """draft unanswered images again, except where the draft was written by a person"""


class ImportOptions(NewProjectOptions):
    """Import existing captions as drafts. Annotators accept each with two keys, or correct it.

    They are imported as drafts, not as answers, so that nothing counts as checked before a person has seen it.
    """

    source: Path = positional()
    """captioned folder (taggui, kohya, OneTrainer, imagefolder), folder of caption files, kohya's JSON, a release's \
captions.csv or .parquet, a Hugging Face dataset, a Label Studio export"""
    prefix: str = ""
    """text that every draft begins with"""


class StatusOptions(ServerOptions, ProjectImageOptions):
    """Show progress, speed, draft quality, annotator agreement and the estimated time left."""

    watch: bool = False
    """pull and print repeatedly, until Ctrl+C"""
    every: float = Field(default=30.0, ge=1)
    """seconds between two rounds of --watch"""
    worst: int = Field(default=3, ge=0)
    """number of least-agreeing caption pairs to show"""
    as_json: bool = False
    """(also --json) print everything as JSON"""


class LintOptions(ServerOptions, ProjectImageOptions):
    """Check every caption: length in tokens, wording, spelling, type, duplicates. Exit code 1 if anything is found."""

    config: Path | None = None
    """YAML file with any of these settings; flags take precedence"""
    tokenizer: Path | None = None
    """folder of the tokenizer, or of a model that has one; default: the embedded base model's"""
    near: int = Field(default=5, ge=0)
    """how many tokens below the limit count as near it"""
    trigger: str = ""
    """word that every caption must have"""
    types: tuple[str, ...] = ()
    """types, of which each caption must name its own; default: the project's; may be repeated"""
    banned: tuple[str, ...] = ()
    """word or phrase that no caption may have; may be repeated"""
    same: tuple[str, ...] = ()
    """synonyms, quoted and separated by spaces ("belly tummy"); may be repeated"""
    accept: tuple[str, ...] = ()
    """word that is spelled correctly; may be repeated"""
    alike: float = Field(default=0.95, gt=0, le=1)
    """share of common words from which two captions count as nearly identical"""
    far: float = Field(default=3.0, gt=0)
    """robust standard deviations below the median at which a caption counts as unlike those of similar images"""
    extractor: str = "descriptors"
    """features for comparing images: descriptors or pixels"""
    leave_out: tuple[str, ...] = ()
    """check to skip; may be repeated"""
    as_json: bool = False
    """(also --json) print everything as JSON"""
    mark: bool = True
    """show the findings on the server, in the Data Manager's column `lint`, which can be filtered"""


class FixOptions(ServerOptions, ProjectOptions):
    """Edit many captions at once: preview first, then --apply. --undo reverts the last edit."""

    find: str | None = None
    """text to find, case-sensitive"""
    replace: str | None = None
    """its replacement; may be empty"""
    regex: bool = False
    """--find is a regular expression; --replace may refer to its groups (\\1)"""
    prefix: str = ""
    """text that every caption should begin with"""
    suffix: str = ""
    """text that every caption should end with"""
    rename: str | None = None
    """term to rename: whole words, singular and plural, keeping case and adjusting a/an"""
    to: str | None = None
    """its new name"""
    having: str = ""
    """only captions with this word or phrase"""
    without: str = ""
    """only captions without this word or phrase"""
    file: str = "*"
    """only images whose file name matches this pattern"""
    annotator: str = ""
    """only captions by this person"""
    show: int = 20
    """how many corrections to show"""
    apply: bool = False
    """make the corrections; without it they are only shown"""
    undo: bool = False
    """revert the last correction, wherever nobody has changed the caption since"""


class ExportOptions(ProjectImageOptions):
    """Export the captions as a dataset for finetune.py: images, metadata.jsonl, tables, lock file and dataset card."""

    into: Path | None = None
    """new folder; default: captions/NAME/releases/RELEASE"""
    release: str | None = None
    """name of the release; default: twelve digits of a hash of its content"""
    wins: Winner = "central"
    """which caption is taken where there are several: central (shares most words with the others), newest or first"""
    prefer: tuple[str, ...] = ()
    """annotator whose answers take precedence; may be repeated, highest precedence first"""
    others: bool = False
    """keep the other captions of an image as further captions"""
    poor: bool = False
    """keep images whose quality is poor"""
    names: bool = False
    """write the annotators' e-mail addresses instead of "annotator 1" (the same person in every release)"""
    sidecars: bool = True
    """write a .txt beside each image"""
    csv: bool = True
    """write captions.csv"""
    parquet: bool = True
    """write captions.parquet"""
    since: Path | None = None
    """older release to list the changes from; default: the one exported last"""
    strict: bool = False
    """fail if anything is left out that was neither skipped, nor poor, nor still open"""
