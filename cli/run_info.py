"""What ``ltm-pyro info`` prints of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltm_pyro.cli.chart import Points, draw, wants_logarithm
from ltm_pyro.cli.render import BASELINE_TERMS, number, show_settings
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ltm_pyro.training.curves import Curve
    from ltm_pyro.training.status import RunStatus

__all__ = ["show_info"]

_WIDTH = 100  # characters of the widest chart
_PANELS = {
    "bound": ("loss, nats/token", 10),
    "log_joint": ("loss of a point estimate, nats/token: no bound", 10),
    "kl": ("KL(q || p), nats/token", 6),
}


def show_info(out: Console, status: RunStatus, curves: Sequence[Curve]) -> None:
    """Prints a run's settings, curves, last validations, state and next commands: the nearest at the end."""
    show_settings(status.settings)
    _show_curves(out, curves)
    _show_validations(out, [row for row in status.rows if row.get("split") == "validation"])
    _show_sessions(out, status.sessions)
    _show_state(out, status)
    out.print("\nNext:\n")
    for one in status.advice:
        out.print(f"  {one.why}:\n    {one.command}", highlight=False, soft_wrap=True)


def _show_curves(out: Console, curves: Sequence[Curve]) -> None:
    for panel, (title, height) in _PANELS.items():
        inside = [curve for curve in curves if curve.panel == panel]
        line = _points(next((c for c in inside if c.split == "train"), None))
        validated = next((c for c in inside if c.split == "validation"), None)
        marks = _points(validated)
        if len({x for x, _ in (*line, *marks)}) < 2:
            continue
        plain = out.options.ascii_only
        mark = "o" if plain else "●"
        about = f"line: training; {mark}: validation" if validated else "training"
        if validated and panel == "bound":
            about += f", {BASELINE_TERMS.get(validated.quantity, '-ELBO')}"
        out.print(f"{title} ({about})", highlight=False, soft_wrap=True)
        width, log = min(out.width, _WIDTH), wants_logarithm(line)
        for row in draw(line, marks, width=width, height=height, log=log, ascii_only=plain):
            out.print(row, highlight=False, no_wrap=True, overflow="ignore", crop=False)
        out.print()


def _points(curve: Curve | None) -> Points:
    return [] if curve is None else list(zip(curve.x, curve.y, strict=True))


def _show_validations(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    error = "+/- s.e." if out.options.ascii_only else "± s.e."
    columns = {"elbo": "-ELBO", "elbo_se": error, "reconstruction": "reconstruction", "kl": "KL"}
    for name, about_it in BASELINE_TERMS.items():
        if name in rows[-1]:
            columns = {name: about_it, f"{name}_se": error}
    table = Table("step", *columns.values(), title="validation, nats/token")
    for row in rows[-10:]:
        table.add_row(str(row["step"]), *(number(row.get(name)) for name in columns))
    out.print(table)


def _show_sessions(out: Console, sessions: Sequence[Mapping[str, Any]]) -> None:
    if not sessions:
        return
    table = Table("began (UTC)", "from step", "ended", "ltm-pyro", "torch", "machine", title="sessions")
    for session in sessions[-5:]:
        end, known, git = session["end"], session.get("versions") or {}, session.get("git")
        code = str(known.get("ltm_pyro", "?"))
        if git:
            code += f" {str(git.get('revision'))[:8]}{'+' if git.get('dirty') else ''}"
        ended = "?" if end is None else f"step {end.get('step')}, {end.get('outcome')}"
        machine = str(session.get("gpu") or session.get("host") or "?")
        began = str(session.get("at", "?"))[:16].replace("T", " ")
        table.add_row(began, str(session.get("step", "?")), ended, code, str(known.get("torch", "?")), machine)
    out.print(table)


def _show_state(out: Console, status: RunStatus) -> None:
    lines = [f"state: {status.state}" + (f" ({status.reason})" if status.reason else "")]
    share = f" ({status.step / status.steps:.0%})" if status.step < status.steps else ""
    lines.append(f"steps: {status.step} of {status.steps}{share}")
    if status.unsaved:
        lost = "not in a checkpoint yet" if status.state == "running" else "lost with it, and trained again by a resume"
        lines.append(f"       {status.unsaved} more are {lost}")
    if status.steps_per_second:
        lines.append(f"speed: {status.steps_per_second:.3g} steps/s without validations and checkpoints")
        if status.state != "finished" and status.seconds_left:
            lines[-1] += f": {duration(status.seconds_left)} left"
    if status.tokens is not None and status.flops is not None:
        lines.append(f"spent: {status.tokens:,} tokens, {status.flops:.3g} FLOPs")
    age = "" if status.checkpoint_age is None else f"; the newest is {duration(status.checkpoint_age)} old"
    lines.append(f"checkpoints: {', '.join(status.checkpoints) or 'none yet'}{age}")
    if status.differences:
        lines.append(f"trained with other code than is installed: {'; '.join(status.differences)}")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time in words, to two units at most."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60:02d} min"
    return f"{days:.1f} days"
