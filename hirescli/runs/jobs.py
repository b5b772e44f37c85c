"""Jobs of a batch: files of partial recipes become jobs, and jobs get names that are safe."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import string
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

from hirescli.errors import ConfigError, RequestError
from hirescli.planning.formats import (
    FORMATS,
    default_output,
    format_for,
    join_name,
    split_name,
    usual_suffix,
)
from hirescli.recipe import Recipe, fragment_faults, read_json_fragment

STDIN = "-"
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".toml": "toml", ".txt": "prompts"}
_BESIDE_RECIPE = ("name", "output")
_MOST_BYTES = 10**8  # of jobs, not a picture by mistake
_LINE_END = re.compile(rb"\r\n|\n|\r")
_JOB_HEADER = re.compile(r"\s*\[\[\s*job\s*\]\]")
_TOML_HEADER = re.compile(r"\[\[?\s*(defaults|job)\s*\]")
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_COLUMNS = (*Recipe.model_fields, "size", *_BESIDE_RECIPE)
_TOML_PLACE = re.compile(r" \(at line (\d+), column \d+\)$")
_JSON_PLACE = re.compile(r"line 1 column (\d+) \(char \d+\)")
_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")

# Names: what some system would refuse or read as something else.
_FORBIDDEN = '/\\<>:"|?*'
_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {
    f"{d}{n}" for d in ("COM", "LPT") for n in "0123456789¹²³"
}
_MOST_NAME_BYTES = 255 - len(".partial")  # the longest that is written beside an output
_HASH_DIGITS = 8  # behind a name that was cut
_SHOWN_HASH_DIGITS = 12
_WHOLE_FIELDS = ("index", "seed", "width", "height")
_TEXT_FIELDS = ("name", "prompt", "hash")
_SPECS = {
    **dict.fromkeys(_WHOLE_FIELDS, r"0?[0-9]{0,2}d?"),
    **dict.fromkeys(_TEXT_FIELDS, r"(\.[0-9]{1,3})?s?"),
}


@dataclass(frozen=True)
class Job:
    """One job as it is written.

    Attributes:
        index: Its number among the jobs, from 1.
        line: Where it begins in its file, from 1; None: the file does not tell.
        fragment: Its own choices of a recipe.
        name: What it is called in names of outputs; None: by prompt and seed.
        output: Its file in the output folder; None: named by the template.
        faults: What is wrong with it by itself.
    """

    index: int
    line: int | None
    fragment: Mapping[str, Any]
    name: str | None = None
    output: str | None = None
    faults: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return place(self.index, self.line)


def place(index: int, line: int | None) -> str:
    """Where a job stands, for messages: by the line of its file, or by its number."""
    return f"job {index}" if line is None else f"line {line}"


@dataclass(frozen=True)
class JobFile:
    """What a file of jobs says.

    Attributes:
        source: How messages call it.
        defaults: Choices of all its jobs that do not choose themselves.
        jobs: At least one.
    """

    source: str
    defaults: Mapping[str, Any]
    jobs: tuple[Job, ...]


def read_jobs(name: str, stdin: Callable[[], BinaryIO]) -> JobFile:
    """Read a file of jobs.

    Args:
        name: A .jsonl, .csv, .toml or .txt file (one prompt a line); what a file without suffix,
            and "-" for stdin, is its first line tells.
        stdin: Gives the stream that "-" stands for.

    Returns:
        The jobs; those with faults among them, where the file itself can be read.

    Raises:
        ConfigError: If the file is missing, has no jobs, or is damaged as a whole.
    """
    source = "stdin" if name == STDIN else name
    kind = _kind(name, source)
    text, faults = _text(_bytes(name, source, stdin), source)
    if kind is None:
        kind = _kind_of(text)
    defaults: Mapping[str, Any] = {}
    if kind == "toml":
        if faults:
            raise ConfigError(source, [f"line {line}: {fault}" for line, fault in faults.items()])
        defaults, jobs = _toml(text, source)
    else:
        parsed = {"jsonl": _json_lines, "csv": _csv, "prompts": _prompts}[kind](text, source)
        jobs = [_with_fault(job, faults) for job in parsed]
    if not jobs:
        raise ConfigError(source, ["holds no job"])
    return JobFile(source, defaults, tuple(jobs))


def seeded(jobs: Sequence[Job], seeds: Sequence[int]) -> tuple[Job, ...]:
    """The jobs, those without a seed of their own once for each seed, numbered anew."""
    if not seeds:
        return tuple(jobs)
    made: list[Job] = []
    for job in jobs:
        own = job.fragment.get("seed") is not None
        for fragment in [job.fragment] if own else [{**job.fragment, "seed": s} for s in seeds]:
            made.append(replace(job, index=len(made) + 1, fragment=fragment))
    return tuple(made)


def shard_of(text: str) -> Callable[[int], bool]:
    """Whether a job, by its number, belongs to the shard "i/n".

    Raises:
        RequestError: If the text is no shard.
    """
    match = _SHARD.fullmatch(text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise RequestError(f'shard "{text}" is none; write 1/4 to 4/4 for the four of four')
    return lambda index: index % count == number % count


# --- files -------------------------------------------------------------------------------------


def _kind(name: str, source: str) -> str | None:
    suffix = Path(name).suffix.lower()
    if name == STDIN or not suffix:
        return None
    if suffix not in _KINDS:
        known = ", ".join(_KINDS)
        raise ConfigError(source, [f'"{suffix}" is no kind of job file; known are {known}'])
    return _KINDS[suffix]


def _kind_of(text: str) -> str:
    """What a text of jobs is, by its first line that is not empty."""
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if first.startswith("{"):
        return "jsonl"
    if _TOML_HEADER.match(first):
        return "toml"
    return "csv" if all(cell.strip() in _COLUMNS for cell in first.split(",")) else "prompts"


def _bytes(name: str, source: str, stdin: Callable[[], BinaryIO]) -> bytes:
    try:
        if name == STDIN:
            data = stdin().read(_MOST_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(source, [f"cannot be read: {reason}"]) from error
    if len(data) > _MOST_BYTES:
        raise ConfigError(source, [f"has more than {_MOST_BYTES} bytes; cut it into several"])
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(source, ["is UTF-16 text; save it as UTF-8"])
    return data


def _text(data: bytes, source: str) -> tuple[str, dict[int, str]]:
    """The text with LF line ends; what is no text in it is made harmless, and told by line."""
    lines, faults = _LINE_END.split(data.removeprefix(b"\xef\xbb\xbf")), {}
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            faults[number] = "holds a NUL byte; remove it"
        try:
            line.decode()
        except UnicodeDecodeError:
            faults[number] = "is not valid UTF-8; save the file as UTF-8"
    return b"\n".join(lines).decode(errors="replace").replace("\0", " "), faults


def _with_fault(job: Job, faults: Mapping[int, str]) -> Job:
    fault = faults.get(job.line or 0)
    return job if fault is None else replace(job, faults=(fault,))


def _prompts(text: str, _: str) -> Iterator[Job]:
    index = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if (prompt := line.strip()) and not prompt.startswith("#"):
            index += 1
            yield _job(index, number, {"prompt": prompt})


def _json_lines(text: str, source: str) -> Iterator[Job]:
    index = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        index += 1
        try:
            yield _job(index, number, read_json_fragment(line, source=source))
        except ConfigError as error:
            # Beside a doubled key it tells the faults of all others, and knows recipes only.
            beside = tuple(f"{key}: is no choice" for key in _BESIDE_RECIPE)
            told = [_JSON_PLACE.sub(r"column \1", fault) for fault in error.faults]
            faults = tuple(fault for fault in told if not fault.startswith(beside))
            yield Job(index, number, {}, faults=faults)


def _csv(text: str, source: str) -> Iterator[Job]:
    rows = _csv_rows(text)
    first, header, fault = next(rows, (1, [], None))
    keys = [key.strip() for key in header]
    faults = [fault] if fault is not None else _header_faults(keys)
    if faults:
        raise ConfigError(source, [f"line {first}: {fault}" for fault in faults])
    for index, (line, cells, fault) in enumerate(rows, start=1):
        if fault is None and len(cells) != len(keys):
            fault = f"has {len(cells)} cells, the header has {len(keys)}"
        if fault is not None:
            yield Job(index, line, {}, faults=(fault,))
            continue
        said = {k: c for k, c in zip(keys, cells, strict=True) if c.strip()}
        yield _job(index, line, {key: _typed(key, cell) for key, cell in said.items()})


def _header_faults(keys: Sequence[str]) -> list[str]:
    doubled = dict.fromkeys(key for key in keys if key and keys.count(key) > 1)
    faults = [f"{key}: stands in the header twice; keep one" for key in doubled]
    if not all(keys):
        faults.append("a column has no name in the header")
    if len(keys) == 1 and ";" in keys[0]:
        return ["is separated by semicolons; separate it by commas"]
    unknown = {key: None for key in keys if key and key not in _COLUMNS}
    return faults + [f"{key}: {fault}" for key, fault in fragment_faults(unknown)]


def _csv_rows(text: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Line, cells and fault of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f"is no CSV: {error}"
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells, None


def _typed(key: str, cell: str) -> Any:
    """A cell as the type that its key has in a recipe; one that does not fit stays text."""
    field = Recipe.model_fields.get(key)
    if field is None:
        return cell
    kinds = list(_leaves(field.annotation))
    try:
        if key in ("loras", "controls", "image_prompts"):
            return json.loads(cell) if cell.lstrip().startswith("[") else [cell.strip()]
        if key in ("strengths", "upscale_steps", "upscale_guidance_scale"):
            number = float if float in kinds else int
            return [number(part) for part in cell.strip().strip("[]").split(",")]
        for kind in (int, float):
            if kind in kinds and (kind is float or _WHOLE.fullmatch(cell)):
                return kind(cell)
        if bool in kinds:
            return {"true": True, "false": False, "1": True, "0": False}.get(cell.lower(), cell)
    except ValueError:  # a value that is none is the recipe's to refuse, with the key
        return cell
    return cell


def _leaves(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    for each in inner:
        yield from _leaves(each)
    if not inner:
        yield annotation


def _toml(text: str, source: str) -> tuple[dict[str, Any], list[Job]]:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        at = _TOML_PLACE.search(str(error))
        message = _TOML_PLACE.sub("", str(error))
        raise ConfigError(source, [f"line {at[1]}: {message}" if at else message]) from error
    faults = [
        f"{key}: is unknown; known are [defaults] and [[job]]"
        for key in data
        if key not in ("defaults", "job")
    ]
    defaults, jobs = data.get("defaults", {}), data.get("job", [])
    if not isinstance(defaults, dict):
        faults.append("defaults: must be a table, [defaults]")
    else:
        faults += [f"defaults.{key}: {fault}" for key, fault in fragment_faults(defaults)]
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        faults.append("job: must be tables, [[job]]")
    if faults:
        raise ConfigError(source, faults)
    lines = [n for n, line in enumerate(text.split("\n"), start=1) if _JOB_HEADER.match(line)]
    places: list[int | None] = [*lines] if len(lines) == len(jobs) else [None] * len(jobs)
    numbered = enumerate(zip(places, jobs, strict=True), start=1)
    return defaults, [_job(index, line, job) for index, (line, job) in numbered]


def _job(index: int, line: int | None, said: Mapping[str, Any]) -> Job:
    own = {key: said[key] for key in _BESIDE_RECIPE if said.get(key) is not None}
    fragment = {key: value for key, value in said.items() if key not in _BESIDE_RECIPE}
    faults = [
        f"{key}: must be text that is not empty"
        for key, value in own.items()
        if not isinstance(value, str) or not value.strip()
    ]
    faults += [f"{key}: {fault}" if key else fault for key, fault in fragment_faults(fragment)]
    if faults:
        return Job(index, line, fragment, faults=tuple(faults))
    return Job(index, line, fragment, **own)


# --- names -------------------------------------------------------------------------------------


class Template:
    """How outputs are named.

    Args:
        text: With {index}, {name}, {prompt}, {seed}, {width}, {height} and {hash} in it; whole
            numbers may be padded, as {index:04d}, and text cut, as {prompt:.20}. A slash leads
            into a folder. Without a suffix the format's is put behind it.

    Raises:
        RequestError: If it holds another field, leads out of the folder, or has the suffix of
            no format.

    Attributes:
        suffix: Of all its names; "" if it has none.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise self._wrong(f"{error}; write a brace itself as {{{{ or }}}}") from error
        for _, field, spec, conversion in parsed:
            if field is not None:
                self._check(field, spec or "", conversion)
        parts = text.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in text:
            raise self._wrong("must name files in the output folder")
        literal, field, *_ = parsed[-1]
        self.suffix = split_name(Path("x" + literal))[1] if field is None else ""
        if self.suffix:
            format_for(Path("x" + self.suffix))

    def name(self, job: Job, asked: Recipe) -> str:
        """The safe name of a job's output, with slashes where the template has them.

        Args:
            job: It has no output of its own.
            asked: The job's recipe before anything is resolved: equal on all machines.
        """
        default = split_name(default_output(asked))[0]
        unenlarged = asked.model_copy(update={"source": None})
        prompt = split_name(default_output(unenlarged))[0]
        filled = self._text.format(
            index=job.index,
            name=safe(job.name or default),
            prompt=prompt.removesuffix(f"-seed{asked.seed}"),
            seed=asked.seed,
            width=asked.width_px,
            height=asked.height_px,
            hash=asked.hash[:_SHOWN_HASH_DIGITS],
        )
        *folders, last = filled.split("/")
        stem, suffix = last.removesuffix(self.suffix), self.suffix
        if not suffix:  # a name of the job's may end with one
            stem, suffix = split_name(Path(last))
            if suffix.lower() not in (usual_suffix(asked), *FORMATS[asked.format].suffixes):
                stem, suffix = last, usual_suffix(asked)
        name = join_name(safe(stem, suffix).removesuffix(suffix), suffix)
        return "/".join([*map(safe, folders), name])

    def _check(self, field: str, spec: str, conversion: str | None) -> None:
        if field not in _SPECS:
            known = ", ".join(f"{{{name}}}" for name in (*_WHOLE_FIELDS, *_TEXT_FIELDS))
            raise self._wrong(f"{{{field}}} is unknown; known are {known}")
        if conversion is not None or not re.fullmatch(_SPECS[field], spec):
            example = "{index:04d}" if field in _WHOLE_FIELDS else "{prompt:.20}"
            raise self._wrong(f"{{{field}:{spec}}} is not understood; write it like {example}")

    def _wrong(self, message: str) -> RequestError:
        return RequestError(f'output template "{self._text}": {message}')


def safe(text: str, suffix: str = "") -> str:
    """A name that every file system takes and no program reads as an option or a device.

    Args:
        text: Anything.
        suffix: Put behind it; the whole has at most 247 bytes, so that what is written beside
            the output has at most 255. What is cut leaves a part of the hash of all.
    """
    plain = unicodedata.normalize("NFC", text)
    plain = "".join(c if c.isprintable() and c not in _FORBIDDEN else "-" for c in plain)
    plain = plain.strip("-. ") or "image"
    if _is_device(plain):
        plain = "_" + plain
    room = _MOST_NAME_BYTES - len(suffix.encode())
    if len(plain.encode()) > room:
        digits = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_HASH_DIGITS]
        kept = plain.encode()[: room - _HASH_DIGITS - 1].decode(errors="ignore")
        plain = f"{kept}-{digits}"
    return plain + suffix


def check_own_output(output: str) -> None:
    """Refuse the name of an output that a job gives itself and that is not safe as it stands.

    Raises:
        RequestError: If so, with the reason.
    """
    parts = output.split("/")
    reason = None
    if not all(c.isprintable() for c in output):
        reason = "holds a control character"
    elif output.startswith("/") or re.match(r"[A-Za-z]:", output):
        reason = "begins at a root"
    elif any(part in ("", ".", "..") for part in parts):
        reason = "leads out of the output folder, or is no plain path"
    elif any(part.startswith("-") for part in parts):
        reason = "begins with a dash"
    elif any(c in _FORBIDDEN for part in parts for c in part):
        reason = f"holds one of {_FORBIDDEN[1:]}"
    elif any(map(_is_device, parts)):
        reason = "is a device on some systems"
    if reason is not None:
        raise RequestError(
            f"output {json.dumps(output)} {reason}; name a file in the output folder, like sea.tif"
        )


def check_inside(output: Path, folder: Path) -> None:
    """Refuse an output that symlinks lead out of a folder, or what is made beside it.

    Raises:
        RequestError: If so.
    """
    if output.parent != folder and not _real(output.parent).is_relative_to(_real(folder)):
        raise RequestError(f"output {output} leads out of {folder} by a symlink; name another")
    for beside in ("", ".run", ".partial"):
        path = output.with_name(output.name + beside)
        if os.path.islink(path) and not _real(path).is_relative_to(_real(folder)):
            raise RequestError(f"{path} is a symlink out of {folder}; remove it")


def same_outputs(outputs: Iterable[tuple[Job, Path]]) -> Iterator[tuple[Job, str]]:
    """Jobs whose output is an earlier one's, with what is wrong; case does not tell two apart."""
    first: dict[str, Job] = {}
    for job, output in outputs:
        key = unicodedata.normalize("NFC", os.path.realpath(output)).casefold()
        earlier = first.setdefault(key, job)
        if earlier is not job:
            yield (
                job,
                (
                    f"{output} is the output of {earlier.where} already; give one of both a name, "
                    "another seed, or use {index} in --output-template"
                ),
            )


def _is_device(name: str) -> bool:
    return name.split(".")[0].strip().upper() in _DEVICES


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
