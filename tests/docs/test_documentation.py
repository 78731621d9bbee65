"""The README and the documentation: their blocks run, their commands parse, their links and tables are true."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
from ltm_pyro.cli.main import cli, main

import ltm_pyro
from ltm_pyro.config import ComponentSettings, Settings
from ltm_pyro.data.corpora import FABLES_DOCUMENTS
from ltm_pyro.guides import GUIDES
from ltm_pyro.presets import PRESETS, preset
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
COMMAND_LINE = ROOT / "docs" / "command-line.md"
FREE_SECTIONS = {"prior", "guide"}  # their keys are options of a class


class Block(NamedTuple):
    """A fenced block: its language, its text, the line above which it opens, and the comment right before it."""

    language: str
    text: str
    line: int
    comment: str


def blocks(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if start is None:
                start = number
                continue
            above = next((text for text in reversed(lines[:start]) if text.strip()), "")
            comment = above if above.startswith("<!--") else ""
            body = "\n".join(lines[start + 1 : number])
            found.append(Block(lines[start][3:].strip(), body, start + 1, comment))
            start = None
    assert start is None, f"{page}: the block at line {start} is never closed"
    return found


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_skipped(block: Block) -> bool:
    return re.match(r"<!-- not run: .+ -->", block.comment) is not None


def executed_blocks(page: Path) -> list[Block]:
    """Python blocks, and those of commands under the comment ``<!-- run -->``."""
    return [b for b in blocks(page) if (b.language == "python" and not is_skipped(b)) or b.comment == "<!-- run -->"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """A folder to work in, importable as the command line's working directory is, and a cache of the session's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
    monkeypatch.setenv("COLUMNS", "100")
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.mark.parametrize("page", [page for page in PAGES if executed_blocks(page)], ids=names)
def test_blocks_run(page: Path, elsewhere: Path):
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in executed_blocks(page):
        if block.language == "bash":
            for command in commands(block):
                run_command_line(command)
            continue
        if file := re.match(r"<!-- file: (\S+) -->", block.comment):
            (elsewhere / file[1]).write_text(block.text + "\n", encoding="utf-8")
        # Line numbers of the page itself, so that a traceback points at the line to mend.
        exec(compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True), namespace)


def commands(block: Block) -> list[list[str]]:
    """Arguments of every ``ltm-pyro`` in a block of commands."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.partition(" > ")[0].split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["ltm-pyro"]:
                found.append(words[1:])
    return found


def run_command_line(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as end:
        if end.code not in (0, None):
            pytest.fail(f"ltm-pyro {shlex.join(arguments)} ended with exit code {end.code}")


class Typed(NamedTuple):
    """A command as a page shows it."""

    page: Path
    block: int
    arguments: list[str]


def typed_commands() -> list[Typed]:
    shown = [(page, block) for page in LINKED for block in blocks(page) if block.language == "bash"]
    return [Typed(page, block.line, arguments) for page, block in shown for arguments in commands(block)]


@pytest.mark.parametrize("typed", typed_commands(), ids=lambda t: f"{names(t.page)}:{t.block}")
def test_command_as_shown_parses(typed: Typed):
    group = click.Context(cli)
    name, *arguments = typed.arguments
    if name.startswith("-"):
        return
    command = cli.get_command(group, name)
    assert command is not None, f"there is no command {name}"
    context = command.make_context(name, arguments, parent=group)  # raises for an option that does not exist
    chosen = context.params.get("preset")
    assert chosen is None or chosen in PRESETS
    assignments = dict(text.split("=", 1) for text in context.params.get("assignments", ()))
    for kind, known in (("prior", PRIORS), ("guide", GUIDES)):
        chosen_component = context.params.get(kind)
        assert chosen_component is None or chosen_component in known or ":" in chosen_component
    assignments = {address: value for address, value in assignments.items() if value != "auto"}  # the command's own
    # Raises for a section, key or value that is none; the options of a prior or guide are its class's own.
    preset(chosen or "tiny").updated(assignments)


def test_pages_name_only_presets_that_exist():
    for page in LINKED:
        for name in re.findall(r"--preset[ =]([\w-]+)", page.read_text(encoding="utf-8")):
            assert name in PRESETS or name == "NAME", f"{names(page)}: no preset {name}"


def test_settings_addressed_in_the_pages_exist():
    sections = {f.name for f in fields(Settings)} - FREE_SECTIONS
    known = {f"{section}.{f.name}" for section in sections for f in fields(getattr(Settings(), section))}
    pattern = re.compile(rf"`((?:{'|'.join(sections)})\.\w+)`")
    known.add("model.same_parameters")  # of every baseline, whatever its class
    for page in LINKED:
        for address in pattern.findall(page.read_text(encoding="utf-8")):
            assert address in known or (ROOT / "ltm_pyro" / address).exists(), f"{names(page)}: no setting {address}"


def table_rows(page: Path, header: str) -> list[list[str]]:
    """Cells of the rows of the table whose header row begins with the given cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_table_of_settings_is_that_of_the_code():
    expected = {}
    for section in fields(Settings):
        settings = getattr(Settings(), section.name)
        if isinstance(settings, ComponentSettings):
            expected[f"`{section.name}.name`"] = f"`{settings.name}`"
            continue
        for key in fields(settings):
            expected[f"`{section.name}.{key.name}`"] = f"`{shown(getattr(settings, key.name))}`"
    found = {row[0]: row[1] for row in table_rows(COMMAND_LINE, "setting")}
    assert found == expected


def test_table_of_presets_is_that_of_the_code():
    found = {row[0].strip("`"): row[1] for row in table_rows(COMMAND_LINE, "preset")}
    assert found.keys() == PRESETS.keys()
    tiny, small, large, paper = (preset(name) for name in ("tiny", "ltm-s", "ltm-l", "paper-ltm-s"))
    for name, phrases in {
        "tiny": (
            f"{tiny.decoder.layers} layers of width {tiny.decoder.hidden}",
            f"{tiny.decoder.num_thoughts} thoughts of width {tiny.decoder.thought_width}",
            f"{tiny.training.steps} steps",
        ),
        "ltm-s": (
            f"{small.decoder.layers} layers, N_z = {small.decoder.num_thoughts}, T_fast = {small.inference.fast_steps}",
            f"sequences of {small.data.sequence_length}, batches of {small.training.batch_size}",
            f"log σ² from {small.inference.init_log_var:g}",
        ),
        "ltm-m": (f"{preset('ltm-m').decoder.layers} layers",),
        "ltm-l": (
            f"{large.decoder.layers} layers, N_z = {large.decoder.num_thoughts}, T_fast = {large.inference.fast_steps}",
        ),
        "paper-ltm-s": (
            f"{paper.data.layout} sequences of {paper.data.sequence_length}, batches of {paper.training.batch_size}",
            f"log σ² from −{-paper.inference.init_log_var:g}, {paper.training.dtype}",
        ),
    }.items():
        for phrase in phrases:
            assert phrase in found[name], f"{name}: the code says {phrase}"


def test_number_of_fables_is_that_of_the_code():
    text = (ROOT / "docs" / "fables.md").read_text(encoding="utf-8").replace("\n", " ")
    assert (
        f"({FABLES_DOCUMENTS['train']:,}; in the preset `tiny` {preset('tiny').data.documents:,})".replace(",", " ")
        in text
    )


@pytest.mark.parametrize("name", PRIORS)
def test_weight_decay_spares_the_priors_as_their_pages_say(name: str):
    modules = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), PRIORS[name]((2, 1, 3))])
    decayed = [group for group in build_optimizer(modules, Settings().training).param_groups if group["weight_decay"]]
    assert [p.shape for group in decayed for p in group["params"]] == [(2, 2)]


NAMES = ["train", "prepare", "sample", "eval", "generation", "gsm8k", "info", "plot", "probe"]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_a_command_is_documented(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    text = COMMAND_LINE.read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert f"`{option}" in section, f"{option} of {name} is not in docs/command-line.md"


@pytest.mark.parametrize("name", NAMES)
def test_options_stand_in_the_order_of_the_help(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    page = COMMAND_LINE.read_text(encoding="utf-8").split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| `(--[\w-]+)", page, flags=re.MULTILINE)
    assert found == [parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)]


def test_commands_stand_in_the_order_of_the_help():
    text = COMMAND_LINE.read_text(encoding="utf-8")
    order = cli.list_commands(click.Context(cli))
    assert [name for name in re.findall(r"^## ([\w-]+)$", text, flags=re.MULTILINE) if name in order] == order
    assert re.findall(r"^ltm-pyro +([\w-]+) .*\[", text, flags=re.MULTILINE) == order


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_eighty_columns(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    context = click.Context(command, click.Context(cli, info_name="ltm-pyro"), name, terminal_width=80)
    assert [line for line in command.get_help(context).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("page", LINKED, ids=names)
def test_relative_links_resolve(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{names(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(place), f"{names(page)}: {target} names no heading"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md does not list {name}"


COMPONENTS = [("priors", name, c) for name, c in PRIORS.items()] + [("guides", name, c) for name, c in GUIDES.items()]


@pytest.mark.parametrize(("folder", "name", "component"), COMPONENTS, ids=str)
def test_every_prior_and_guide_has_a_page_with_its_options(folder: str, name: str, component: type):
    page = ROOT / "docs" / folder / f"{name}.md"
    assert page.exists(), f"docs/{folder}/{name}.md is missing"
    options = list(inspect.signature(component).parameters.values())[1:]  # the first is the shape or the model
    if options:
        found = {row[0]: row[1].replace("−", "-") for row in table_rows(page, "option")}
        assert found == {f"`{option.name}`": shown(option.default) for option in options}
    else:
        assert "Options: none." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ltm_pyro.__all__)
def test_public_name_has_a_docstring(name: str):
    value = getattr(ltm_pyro, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
    else:
        # An alias carries its docstring as a string below its definition.
        home = importlib.import_module(f"ltm_pyro.{ltm_pyro._HOMES[name]}")
        sources = [inspect.getsource(importlib.import_module(m)) for m in sys.modules if m.startswith(home.__name__)]
        assert any(re.search(rf'^{name} = .+\n"""', source, flags=re.MULTILINE) for source in sources)
