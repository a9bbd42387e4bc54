"""Generation by flow matching (Lipman et al. 2023): the velocity from noise to data, learned as a regression.

With x_t = (1 - t) x_0 + t x_1, x_0 noise and x_1 an observation, the velocity E[x_1 - x_0 | x_t, t] carries noise to
data. So every regime generates, not only the implicit one: each answers (x_t, t) with a velocity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from iai_hf.tables.solvers.solver import Batch
from iai_hf.tables.training.families import Family, TableEpisode

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHIFTED_LETTERS = "abdefghkmnpqrty2345679"
PIXELS = 24
Velocity = Callable[[torch.Tensor], torch.Tensor]  # of [..., (x, y, t)], [..., 2]


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians of equal weight: centres `[tasks, components, 2]`, one standard deviation."""

    centres: torch.Tensor
    deviation: float

    def draw(self, generator: torch.Generator, count: int) -> torch.Tensor:
        """Points `[tasks, count, 2]`."""
        tasks, components, _ = self.centres.shape
        picks = torch.randint(components, (tasks, count), generator=generator)
        centres = self.centres.gather(1, picks[..., None].expand(-1, -1, 2))
        return centres + self.deviation * torch.randn(tasks, count, 2, generator=generator)

    def velocity(self, asked: torch.Tensor) -> torch.Tensor:
        """The true E[x_1 - x_0 | x_t, t] for `[tasks, n, (x, y, t)]`."""
        point, t = asked[..., :2], asked[..., 2:]
        variance = t**2 * self.deviation**2 + (1 - t) ** 2
        gaps = point[:, :, None] - t[..., None] * self.centres[:, None]
        share = (-gaps.square().sum(-1) / (2 * variance)).softmax(-1)
        # Of a jointly Gaussian (x_1 - x_0, x_t) within each component.
        slope = (t * self.deviation**2 - (1 - t)) / variance
        means = self.centres[:, None] + slope[..., None] * gaps
        return (share[..., None] * means).sum(2)


@dataclass(frozen=True)
class Flow(Family):
    """Points of a mixture, as a regression from (x_t, t) to velocities."""

    def mixture(self, generator: torch.Generator, tasks: int, shifted: bool) -> Mixture:
        """Two to four Gaussians in a square; shifted: six on a ring."""
        if shifted:
            angle = torch.arange(6) * torch.pi / 3 + torch.rand(tasks, 1, generator=generator) * torch.pi
            return Mixture(1.6 * torch.stack([angle.cos(), angle.sin()], -1), 0.2)
        centres = 3 * torch.rand(tasks, 4, 2, generator=generator) - 1.5
        kept = torch.randint(2, 5, (tasks, 1), generator=generator)
        places = torch.arange(4).expand(tasks, -1) % kept  # fewer components: the first ones again
        return Mixture(centres.gather(1, places[..., None].expand(-1, -1, 2)), 0.2)

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        """The exact answer is the true velocity."""
        mixture = self.mixture(generator, tasks, shifted)
        data = mixture.draw(generator, examples + queries)
        noise = torch.randn(data.shape, generator=generator)
        t = torch.rand(tasks, examples + queries, 1, generator=generator)
        x, y = torch.cat([(1 - t) * noise + t * data, t], -1), data - noise
        return TableEpisode(
            Batch(x[:, :examples], y[:, :examples]),
            Batch(x[:, examples:], y[:, examples:]),
            lambda _, asked: mixture.velocity(asked),
        )


@dataclass(frozen=True)
class Alphabet(Flow):
    """Points in the ink of a letter, from the font that matplotlib carries; shifted: lower case and digits, serifs."""

    def mixture(self, generator: torch.Generator, tasks: int, shifted: bool) -> Mixture:
        """A narrow Gaussian a pixel."""
        letters = SHIFTED_LETTERS if shifted else LETTERS
        picks = torch.randint(len(letters), (tasks,), generator=generator).tolist()
        inks = [ink(letters[pick], "DejaVuSerif" if shifted else "DejaVuSans") for pick in picks]
        most = max(map(len, inks))
        return Mixture(torch.stack([points[torch.arange(most) % len(points)] for points in inks]), 0.05)


@lru_cache(maxsize=256)
def ink(letter: str, font: str) -> torch.Tensor:
    """Centres of a letter's pixels, `[pixels, 2]`, in a square from -1.5 to 1.5."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    image = Image.new("L", (PIXELS, PIXELS))
    drawing = ImageDraw.Draw(image)
    drawing.text(
        (PIXELS / 2, PIXELS / 2), letter, fill=255, font=ImageFont.truetype(str(path), PIXELS - 4), anchor="mm"
    )
    rows, columns = torch.tensor(list(image.getdata())).reshape(PIXELS, PIXELS).gt(127).nonzero(as_tuple=True)
    return torch.stack([columns, PIXELS - 1 - rows], 1).float() / PIXELS * 3 - 1.5


def generate(velocity: Velocity, noise: torch.Tensor, steps: int = 50) -> torch.Tensor:
    """Points `[tasks, n, 2]` from noise, by Heun's method."""
    points = noise
    for step in range(steps):
        t, length = step / steps, 1 / steps
        here = velocity(_at(points, t))
        there = velocity(_at(points + length * here, t + length))
        points = points + length * (here + there) / 2
    return points


def energy_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Between two samples `[tasks, n, 2]` (Szekely and Rizzo 2013): `[tasks]`, zero for equal distributions."""
    n = first.shape[1]
    within = (torch.cdist(first, first).sum((1, 2)) + torch.cdist(second, second).sum((1, 2))) / (n * (n - 1))
    return 2 * torch.cdist(first, second).mean((1, 2)) - within


def _at(points: torch.Tensor, t: float) -> torch.Tensor:
    return torch.cat([points, torch.full_like(points[..., :1], t)], -1)
