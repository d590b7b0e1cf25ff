"""The report of an audit: tables, JSON, a plot; and the verdict, which never says robust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pursuitify import plots
from pursuitify.robust.auditing.gradient_statistics import GradientStatistics, wilson
from pursuitify.robust.auditing.protocols import KINDS
from pursuitify.robust.auditing.red_flags import FLAGS, CurvePoint, Flag
from pursuitify.robust.auditing.results_record import AttackResult, write
from pursuitify.utils.terminal import Shown, as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_ROWS = 14  # of gradient statistics that are printed


@dataclass(frozen=True)
class AuditReport(Shown):
    """The outcome of :func:`pursuitify.robust.auditing.audit`.

    Attributes:
        setting: Protocol, threat model, seed, number of images and classes, sweeps.
        clean: Accuracy on the inputs as they are, per network.
        results: Every attack on every network.
        curve: Accuracy against epsilon.
        gradients: Gradient statistics, the network's own first.
        flags: The red flags; none is no proof of anything.
        seconds: How long the attacks took, those of resumed runs included.
    """

    setting: Mapping[str, Any]
    clean: Mapping[str, float]
    results: tuple[AttackResult, ...]
    curve: tuple[CurvePoint, ...]
    gradients: tuple[GradientStatistics, ...]
    flags: tuple[Flag, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """The flags' names, or ``no flag raised``; for a network at chance ``none``, and why."""
        names = list(dict.fromkeys(flag.name for flag in self.flags))
        if names:
            return "flags raised: " + ", ".join(names)
        if self.at_chance:
            return "none, because the accuracy on clean images cannot be told from guessing"
        return "no flag raised"

    @property
    def images(self) -> int:
        """The number of inputs that were attacked."""
        return int(self.setting["images"])

    def fooled(self, subject: str = "network") -> set[int]:
        """Return the indices of the inputs that at least one attack fooled."""
        return set().union(*(r.fooled for r in self.results if r.subject == subject))

    def worst(self, subject: str = "network") -> float:
        """Return the accuracy under the worst attack of each input."""
        wrong = round((1 - self.clean[subject]) * self.images)
        return 1 - max(len(self.fooled(subject)), wrong) / self.images

    def interval(self, subject: str = "network") -> tuple[float, float]:
        """Return Wilson's 95 % interval of ``worst``."""
        return wilson(round(self.worst(subject) * self.images), self.images)

    @property
    def at_chance(self) -> bool:
        """Whether the network cannot be told from guessing on the inputs as they are.

        So it is where 1 / classes is not below Wilson's 95 % interval of its accuracy.
        """
        right = round(self.clean["network"] * self.images)
        classes = int(self.setting["classes"])
        return wilson(right, self.images)[0] <= 1 / classes

    def accuracy(self, attack: str, subject: str = "network") -> float | None:
        """Return the accuracy under one attack; None if it ran on survivors only or failed."""
        for result in self.results:
            if (result.name, result.subject) == (attack, subject):
                whole = result.attacked == self.images and not result.error
                return 1 - len(result.fooled) / self.images if whole else None
        raise KeyError(f"no attack {attack!r} on {subject!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        subjects = {
            name: {
                "clean": clean,
                "worst": self.worst(name),
                "interval": list(self.interval(name)),
            }
            for name, clean in self.clean.items()
        }
        return {
            "verdict": self.verdict,
            "at_chance": self.at_chance,
            "setting": dict(self.setting),
            "networks": subjects,
            "results": [
                {
                    **asdict(r),
                    "fooled": list(r.fooled),
                    "accuracy": self.accuracy(r.name, r.subject),
                }
                for r in self.results
            ],
            "curve": [asdict(point) for point in self.curve],
            "gradients": [asdict(found) for found in self.gradients],
            "flags": [asdict(flag) for flag in self.flags],
            "seconds": self.seconds,
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write ``to_dict()`` as JSON."""
        write(path, self.to_dict())

    def __rich__(self) -> Group:
        parts: list[Table | Text] = [*(self._attacks(name) for name in self.clean), self._sweep()]
        if self.gradients:
            parts.append(self._gradients())
        parts.append(self._flags())
        if self.at_chance:
            text = (
                f"The network's accuracy of {self.clean['network']:.1%} cannot be told from "
                f"guessing among {self.setting['classes']} classes: it is untrained, its weights "
                "were not loaded, or its inputs are prepared in another way. Nothing here says "
                "anything about robustness."
            )
            parts.append(Text(text, style="bold red"))
        style = "bold red" if self.flags else "bold"
        return Group(*parts, Text(f"Verdict: {self.verdict}", style=style))

    def __str__(self) -> str:
        """Return the tables as plain text."""
        return as_text(self, width=110)

    def _attacks(self, subject: str) -> Table:
        s = self.setting
        low, high = self.interval(subject)
        sweeps = f", T = {s['iterations']}" if subject == "network" and "iterations" in s else ""
        title = (
            f"{subject}{sweeps}: {self.images} inputs, {s['norm']} ball of {s['eps']:.4g}, "
            f"protocol {s['protocol']}"
        )
        caption = (
            f"Per-example worst {self.worst(subject):.1%} (95 % interval {low:.1%} to {high:.1%}). "
            "New: fooled by nothing above."
        )
        # A table of few short rows is no narrower than its title.
        table = Table(title=title, caption=caption, min_width=min(len(caption), 90))
        table.add_column("attack")
        table.add_column("sees")
        for heading in ("on", "accuracy", "new", "seconds"):
            table.add_column(heading, justify="right")
        table.add_row("none", "", str(self.images), f"{self.clean[subject]:.1%}", "", "")
        for r in self.results:
            if r.subject != subject:
                continue
            share = self.accuracy(r.name, subject)
            shown = "failed" if r.error else "" if share is None else f"{share:.1%}"
            sees = KINDS[r.kind]
            row = (r.name, sees, str(r.attacked), shown, str(r.new), f"{r.seconds:.1f}")
            table.add_row(*row)
        return table

    def _sweep(self) -> Table:
        table = Table(title="Accuracy against epsilon")
        table.add_column("epsilon", justify="right")
        table.add_column("accuracy", justify="right")
        for point in self.curve:
            name = f"{point.eps:.4g}" + (" (any image)" if point.unbounded else "")
            table.add_row(name, f"{point.accuracy:.1%}")
        return table

    def _gradients(self) -> Table:
        shown = self.gradients
        if len(shown) > _ROWS:  # the own first, twice its sweeps last, some between
            between = shown[1:-1]
            kept = [between[n * (len(between) - 1) // (_ROWS - 3)] for n in range(_ROWS - 2)]
            shown = (shown[0], *kept, shown[-1])
        left_out = len(self.gradients) - len(shown)
        table = Table(
            title="Gradients at the clean inputs",
            caption=f"{left_out} sweeps between are not shown; they are in the JSON."
            if left_out
            else None,
        )
        table.add_column("through")
        for heading in ("on", "norm CE", "norm margin", "zero CE", "zero margin", "zero pixels"):
            table.add_column(heading, justify="right")
        table.add_column("reach", justify="right")
        for g in shown:
            norms = (f"{g.norm_ce:.2e}", f"{g.norm_margin:.2e}")
            zeros = (f"{g.zero_ce:.1%}", f"{g.zero_margin:.1%}", f"{g.zero_entries:.1%}")
            table.add_row(g.view, str(g.inputs), *norms, *zeros, f"{g.reach:.2f}")
        return table

    def _flags(self) -> Table:
        table = Table(title="Red flags")
        table.add_column("flag")
        table.add_column("raised by")
        for name, meaning in FLAGS.items():
            details = [flag.detail for flag in self.flags if flag.name == name]
            shown = Text("\n".join(details), style="red") if details else Text("not raised")
            table.add_row(f"{name}\n  {meaning}" if details else name, shown)
        return table

    def plot(self, path: str | PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw the accuracy of every network against epsilon.

        The curve is the sweep over epsilon, of the network alone. At the epsilon of the audit, and
        on the inputs as they are, all networks stand beside each other with Wilson's 95 %
        intervals: the per-example worst of all attacks, and the clean accuracy.

        Args:
            path: File to write; the suffix chooses the format. Nothing is written if None.
            ax: Axes to draw into; None for a figure of its own.

        Raises:
            OptionError: If matplotlib writes no such format.
            CheckpointError: If it cannot be written; what stood at ``path`` is still there.
        """
        radii = sorted({0.0, float(self.setting["eps"]), *(point.eps for point in self.curve)})
        place = {eps: number for number, eps in enumerate(radii)}
        chance = 1 / self.setting["classes"]
        with plots.style():
            figure, axes = plots.panel(ax, plots.WIDE)
            curve = [(0.0, self.clean["network"]), *((p.eps, p.accuracy) for p in self.curve)]
            axes.plot(
                [place[eps] for eps, _ in curve],
                [accuracy for _, accuracy in curve],
                color=plots.COLOURS[-1],
                marker=".",
                linestyle=":",
                label="network, by epsilon",
            )
            for number, name in enumerate(self.clean):
                found = {0.0: self.clean[name], float(self.setting["eps"]): self.worst(name)}
                bars = [self._bar(accuracy) for accuracy in found.values()]
                axes.errorbar(
                    [place[eps] + plots.beside(number, len(self.clean)) for eps in found],
                    list(found.values()),
                    yerr=[list(side) for side in zip(*bars, strict=True)],
                    color=plots.COLOURS[number % (len(plots.COLOURS) - 1)],
                    marker=plots.MARKS[number % len(plots.MARKS)],
                    linestyle="none",
                    label=name,
                )
            axes.axhline(chance, linestyle="--", linewidth=0.8, color="grey", label="chance")
            any_image = {point.eps for point in self.curve if point.unbounded}
            names = [_radius(e) + ("\nany image" if e in any_image else "") for e in radii]
            plots.ordinal(axes, radii, names)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel(f"epsilon ({self.setting['norm']}; places evenly spaced)")
            axes.set_ylabel("accuracy")
            attacked = f"marks at {_radius(self.setting['eps'])}: worst of all attacks per input"
            setting = f"{self.images} inputs, protocol {self.setting['protocol']}, {attacked}"
            axes.set_title(f"{setting}\n{self.verdict}", wrap=True)
            plots.legend(axes)
            return plots.finished(figure, path)

    def _bar(self, accuracy: float) -> tuple[float, float]:
        """Return how far Wilson's 95 % interval reaches below and above an accuracy."""
        low, high = wilson(round(accuracy * self.images), self.images)
        return max(accuracy - low, 0.0), max(high - accuracy, 0.0)


def _radius(eps: float) -> str:
    """Return an epsilon as it is written: in steps of 1/255 where two digits do not state it."""
    steps = 255 * eps
    if 0 < eps < 1 and abs(steps - round(steps)) < 1e-6 and round(eps, 2) != round(eps, 6):
        return f"{round(steps)}/255"
    return f"{eps:.3g}"
