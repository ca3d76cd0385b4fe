"""Starting the ranks of one job, and making sure that none is left. Every launcher gives the same Job."""

from __future__ import annotations

from hpo.launchers.job import Job, kill_processes
from hpo.launchers.processes import command_line, job_id_prefix, launch

__all__ = ["Job", "command_line", "job_id_prefix", "kill_processes", "launch"]
