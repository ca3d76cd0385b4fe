"""The configuration of a job: its schema, reading YAML with places, merging and validating layers. Torch-free."""

from training.config.flat import nested
from training.config.layers import (
    assign,
    find_file,
    flatten,
    in_reading_order,
    job_config,
    keys_at,
    merge,
    options_layer,
    problems_of,
    settings_layer,
    suggestion,
    valid_part,
    validate,
)
from training.config.schema import (
    MEASURES,
    TASK_METRICS,
    CrossValidationConfig,
    DistributedConfig,
    JobConfig,
    Section,
)
from training.config.sealed import dump_sealed, read_sealed, require_whole
from training.config.size import Size, parse_size
from training.config.source import KeyPath, Layer, dump_yaml, parse_layer, read_layer

__all__ = [
    "MEASURES",
    "TASK_METRICS",
    "CrossValidationConfig",
    "DistributedConfig",
    "JobConfig",
    "KeyPath",
    "Layer",
    "Section",
    "Size",
    "assign",
    "dump_sealed",
    "dump_yaml",
    "find_file",
    "flatten",
    "in_reading_order",
    "job_config",
    "keys_at",
    "merge",
    "nested",
    "options_layer",
    "parse_layer",
    "parse_size",
    "problems_of",
    "read_layer",
    "read_sealed",
    "require_whole",
    "settings_layer",
    "suggestion",
    "valid_part",
    "validate",
]
