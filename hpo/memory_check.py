"""Whether a sampled configuration will fit its devices, predicted before a GPU second is spent on it."""

from __future__ import annotations

from collections.abc import Callable

from hpo.devices import Hardware, detect_hardware, place
from hpo.largest_job import memory_key
from hpo.plan import Gpus, gib, predict
from training.config import JobConfig
from training.errors import TrainingError
from training.run_dir import PlanRequest

CONSTRAINT = "memory"
"""Name of the constraint in the study: predicted peak over what is there, less one; above zero is too large."""


class MemoryCheck:
    """Asks ``hpo.plan`` once for each configuration that differs in what memory depends on."""

    def __init__(self, notice: Callable[[str], None], hardware: Hardware | None = None) -> None:
        self._notice, self._hardware = notice, hardware or detect_hardware()
        self._known: dict[str, tuple[float, str] | None] = {}

    def overshoot(self, config: JobConfig) -> tuple[float, str] | None:
        """The constraint's value and the sentence for it; None without a limit, or when nothing can be predicted."""
        limit_bytes = self._limit(config)
        if limit_bytes is None:
            return None
        key = memory_key(config)
        if key not in self._known:
            self._known[key] = self._predict(config, limit_bytes)
        return self._known[key]

    def _predict(self, config: JobConfig, limit_bytes: int) -> tuple[float, str] | None:
        placement = place(config.distributed, self._hardware)
        request = PlanRequest(
            memory_bytes=limit_bytes,
            world_size=placement.world_size,
            has_bfloat16=self._hardware.has_bfloat16(placement.gpus),
            every_way=False,
        )
        try:
            (row,) = predict(config, request)
        except TrainingError as error:
            self._notice(f"memory is not checked: {error}; distributed.memory_limit: off does not try")
            return None
        over = row.peak_bytes / limit_bytes - 1.0
        shares = f"{gib(row.peak_bytes)} of {gib(limit_bytes)} per device ({over:.0%} too much)"
        return over, f"predicted to take {shares}, so it was not launched"

    def _limit(self, config: JobConfig) -> int | None:
        limit = config.distributed.memory_limit
        if limit == "off":
            return None
        if isinstance(limit, int):
            return limit
        gpus = place(config.distributed, self._hardware).gpus
        return Gpus(count=1, memory_bytes=self._hardware.memory_bytes(gpus)).usable_bytes if gpus else None
