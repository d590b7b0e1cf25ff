"""Settings of every test run."""

from __future__ import annotations

import os

import hypothesis
import torch

torch.set_num_threads(1)

# A draw may wait for the machine; how long tests take is for other tests to say. On a developer's
# machine every run draws other examples, and a failure prints how to draw it again; continuous
# integration draws the same ones each time, so that a red run says something about the commit.
hypothesis.settings.register_profile("developer", deadline=None)
hypothesis.settings.register_profile("integration", deadline=None, derandomize=True)
hypothesis.settings.load_profile("integration" if "CI" in os.environ else "developer")
