"""Starting the ranks of one job, and making sure that none is left. Every launcher gives the same Job."""

from __future__ import annotations

from hpo.launchers.job import Job
from hpo.launchers.processes import launch

__all__ = ["Job", "launch"]
