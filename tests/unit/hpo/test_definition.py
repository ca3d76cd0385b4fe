"""A study from its files and the command line: which layer wins, what is checked, what makes scores comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpo.definition import StudyDefinition, base_job, find_study, joined_definition, load_definition, load_job
from hpo.errors import StudyNotFoundError
from training.errors import ConfigError

STUDY = """\
study: demo
objective: {metric: accuracy, direction: maximize}
search_space:
  optimizer.lr: {float: [0.001, 0.1], log: true}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty base configuration, empty environments and a study named demo."""
    monkeypatch.chdir(tmp_path)
    for name in ("local", "ci"):
        write(f"config/env/{name}.yaml", "")
    write("config/train.yaml", "")
    write("studies/demo.yaml", STUDY)
    return tmp_path


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def load(
    study: str = STUDY, *, environment: str = "local", settings: tuple[str, ...] = (), **more: Any
) -> StudyDefinition:
    write("studies/demo.yaml", study)
    return load_definition("demo", environment=environment, settings=settings, **more)


def problems(study: str = STUDY, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(study, **more)
    return str(caught.value).splitlines()


# Layers


def test_defaults_base_environment_study_sampled_and_set_win_in_this_order() -> None:
    write(
        "config/train.yaml", "optimizer: {lr: 0.02, momentum: 0.2, weight_decay: 0.2}\ntraining: {epochs: 2}\nseed: 2\n"
    )
    write("config/env/local.yaml", "optimizer: {lr: 0.03, momentum: 0.3, weight_decay: 0.3}\ntraining: {epochs: 3}\n")
    study = "config: {optimizer: {lr: 0.04, momentum: 0.4, weight_decay: 0.4}}\n"
    space = "  optimizer.momentum: {float: [0.0, 0.9]}\n"
    definition = load(STUDY + space + study, settings=("optimizer.lr=0.06",))
    config = definition.trial_config({"optimizer.lr": 0.05, "optimizer.momentum": 0.5})
    found = {
        "default": config.data.max_length,
        "base": config.seed,
        "environment": config.training.epochs,
        "study": config.optimizer.weight_decay,
        "sampled": config.optimizer.momentum,
        "set": config.optimizer.lr,
    }
    assert found == {"default": 64, "base": 2, "environment": 3, "study": 0.4, "sampled": 0.5, "set": 0.06}


def test_the_job_before_sampling_has_every_layer_but_the_sampled_values() -> None:
    definition = load(STUDY + "config: {training: {epochs: 7}}\n", settings=("seed=5",))
    assert (definition.job.training.epochs, definition.job.seed, definition.job.optimizer.lr) == (7, 5, 0.001)


def test_the_environment_asked_for_is_the_one_laid_over() -> None:
    write("config/env/ci.yaml", "distributed: {devices: 2}\n")
    assert load(environment="ci").job.distributed.devices == 2
    assert load(environment="local").job.distributed.devices == "auto"


def test_the_environment_is_detected_when_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    write("config/env/kaggle.yaml", "seed: 11\n")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    definition = load_definition("demo")
    assert (definition.environment, definition.job.seed) == ("kaggle", 11)


def test_the_studys_cross_validation_is_above_its_config_block() -> None:
    write("config/train.yaml", "cross_validation: {folds: 3, repeats: 2, seed: 4}\n")
    definition = load(STUDY + "cross_validation: {folds: 7}\nconfig: {cross_validation: {folds: 6, repeats: 5}}\n")
    folds = definition.job.cross_validation
    assert (folds.folds, folds.repeats, folds.seed) == (7, 5, 4)


def test_another_base_is_read_when_the_study_names_one() -> None:
    write("studies/own.yaml", "seed: 9\n")
    assert load(STUDY + "base: studies/own.yaml\n").job.seed == 9
    assert load(STUDY + "base: own.yaml\n").job.seed == 9, "beside the study"


def test_an_override_changes_the_study_itself() -> None:
    definition = load(STUDY + "budget: {trials: 3}\n", options={"budget.trials": "8", "budget.timeout": "2h"})
    assert (definition.config.budget.trials, definition.config.budget.timeout) == (8, 7200)


def test_a_study_is_found_by_name_and_by_path(folder: Path) -> None:
    assert find_study("demo") == Path("studies/demo.yaml")
    assert find_study("studies/demo.yaml") == Path("studies/demo.yaml")
    assert find_study(str(folder / "studies/demo.yaml")) == folder / "studies/demo.yaml"


def test_a_study_that_is_not_there_is_told_with_the_nearest_one() -> None:
    with pytest.raises(StudyNotFoundError) as caught:
        load_definition("dmo")
    assert str(caught.value) == "--study dmo: neither a file nor a study in studies/; did you mean 'demo'?"


def test_everything_is_written_below_the_output_root() -> None:
    assert load(settings=("output.root=/data/x",)).root == Path("/data/x")


# One configuration without a study


@pytest.mark.parametrize(("environment", "seed"), [(None, 2), ("local", 1)], ids=["detected", "asked for"])
def test_a_job_is_its_file_above_the_detected_environment_and_below_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, seed: int
) -> None:
    monkeypatch.setattr("hpo.definition.detect_environment", lambda: "local")
    write("config/env/local.yaml", "seed: 1\noutput: {root: env}\n")
    write("job.yaml", "seed: 2\ntraining: {epochs: 2}\n")
    job = load_job(Path("job.yaml"), environment=environment, settings=["training.epochs=3"])
    assert (job.output.root, job.seed, job.training.epochs) == ("env", seed, 3)


def test_a_job_tells_the_problems_of_all_its_layers() -> None:
    write("config/env/local.yaml", "seed: -1\n")
    write("job.yaml", "training: {epochs: -1}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(Path("job.yaml"), environment="local", settings=["x"])
    assert sorted(str(problem) for problem in caught.value.problems) == [
        "--set x: must read key.path=value",
        "config/env/local.yaml:1: seed must be greater than or equal to 0, not -1",
        "job.yaml:1: training.epochs must be greater than or equal to 0, not -1",
    ]


def test_a_job_without_its_file_is_an_error_with_the_path() -> None:
    with pytest.raises(ConfigError, match="missing.yaml: cannot be read: No such file or directory"):
        load_job(Path("missing.yaml"), environment="local")


@pytest.mark.parametrize("text", ["", "# nothing yet", "{}"])
def test_a_file_that_says_nothing_is_refused(text: str) -> None:
    Path("empty.yaml").write_text(text)
    with pytest.raises(ConfigError, match="empty.yaml: says nothing; name a task, such as task: embedding"):
        load_job(Path("empty.yaml"), environment="local")


def test_the_base_job_is_the_base_configuration_alone() -> None:
    write("config/train.yaml", "output: {root: there}\n")
    assert base_job(environment="local").output.root == "there"
    assert base_job(environment="local", settings=["output.root=x"]).output.root == "x"


# Problems


def test_the_problems_of_all_files_are_told_at_once_each_in_its_place() -> None:
    write("config/train.yaml", "optimizer:\n  lr: fast\n")
    write("config/env/local.yaml", "outputs: {}\n")
    study = "study: a b\nconfig:\n  seed: -1\nsampler: {name: tp}\nsearch_space: {}\n"
    found = problems(study, settings=("x",), options={"budget.trials": "0"})
    assert sorted(text for text in found) == [
        "--set x: must read key.path=value",
        "--trials 0: budget.trials must be greater than or equal to 1, not 0",
        "config/env/local.yaml:1: outputs is not a known key; did you mean 'output'?",
        "config/train.yaml:2: optimizer.lr must be a valid number, not 'fast'",
        "studies/demo.yaml:1: objective is required",
        "studies/demo.yaml:1: study must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$', not 'a b'",
        "studies/demo.yaml:3: seed must be greater than or equal to 0, not -1",
        "studies/demo.yaml:4: sampler.name must be 'tpe', 'random', 'gp', 'cmaes', 'nsga2', 'qmc' or 'grid', not 'tp'",
        "studies/demo.yaml:5: search_space must have at least 1 item, not {}",
    ]


def test_a_mistake_in_a_required_key_hides_no_other() -> None:
    study = (
        "study: a b\nobjective: {metric: accuracy, direction: maximise}\nsearch_space:\n"
        "  optimizer.lrr: {float: [0.1, 1]}\n  training.epochs: {int: [5, 2]}\n"
    )
    assert problems(study) == [
        "studies/demo.yaml:1: study must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$', not 'a b'",
        "studies/demo.yaml:2: objective.direction must be 'maximize' or 'minimize', not 'maximise'",
        "studies/demo.yaml:4: optimizer.lrr is not in the configuration; did you mean 'optimizer.lr'?",
        "studies/demo.yaml:5: search_space.training.epochs: impossible range: 5 is above 2;"
        " write the lower bound first",
    ]


@pytest.mark.parametrize(
    ("key", "text", "rule"),
    [
        ("budget.timeout", "soon", "'soon' is not a duration; write 90s, 30m, 2h or 1d"),
        ("budget.deadline", "-1", "-1 is not a duration; write 90s, 30m, 2h or 1d"),
        ("fidelity.disk", "20", "20 has no unit; write 20GB, or 20B for bytes"),
        ("fidelity.disk", "lots", "'lots' is not a size; write 24GB, 24GiB or 512MB"),
    ],
)
def test_a_wrong_duration_or_size_is_told_with_place_key_rule_and_what_to_write(key: str, text: str, rule: str) -> None:
    block, name = key.split(".")
    more = "  epochs: {min: 1}\n" if block == "fidelity" else ""
    assert problems(f"{STUDY}{block}:\n{more}  {name}: {text}\n") == [
        f"studies/demo.yaml:{7 if more else 6}: {key}: {rule}"
    ]


def test_mistakes_in_a_list_and_a_null_hide_no_other() -> None:
    found = problems(STUDY + "  seeds: {int: [1, 2]}\nconfig: {optimizer: {lr: null, betas: [a, b]}}\n")
    assert any("optimizer.lr" in line for line in found)
    assert any("optimizer.betas" in line for line in found)
    assert any("seeds is not in the configuration; did you mean 'seed'?" in line for line in found)


def test_a_missing_base_is_told_where_it_is_named() -> None:
    assert problems(STUDY + "\nbase: nowhere.yaml\n") == [
        "studies/demo.yaml:6: base: there is no file 'nowhere.yaml'; give a path to a YAML file"
    ]


def test_an_unknown_environment_is_told_with_the_nearest_one() -> None:
    assert problems(environment="colb") == ["--env: there is no environment 'colb'; did you mean 'colab'?"]


def test_an_unknown_key_of_the_search_space_is_told_with_the_nearest_one() -> None:
    assert problems(STUDY + "  optimizer.weight_decy: {float: [0.1, 1]}\n") == [
        "studies/demo.yaml:5: optimizer.weight_decy is not in the configuration; did you mean 'optimizer.weight_decay'?"
    ]


def test_a_metric_that_the_task_does_not_report_is_told_with_the_nearest_one() -> None:
    assert problems(STUDY.replace("metric: accuracy", "metric: acuracy")) == [
        "studies/demo.yaml:2: objective.metric acuracy is not a metric of text_classification; did you mean 'accuracy'?"
    ]


def test_a_task_of_ones_own_may_have_any_metric() -> None:
    study = STUDY.replace("metric: accuracy", "metric: recall@10") + "config: {task: 'mine.tasks:Task'}\n"
    assert load(study).config.objective.metric == "recall@10"


def test_a_fold_belongs_to_the_sweep_and_not_to_the_study() -> None:
    assert problems(STUDY + "cross_validation: {fold: 1}\n") == [
        "studies/demo.yaml:5: cross_validation.fold is set by the sweep, once per fold; remove it"
    ]


def test_pauses_belong_to_the_sweep_and_not_to_the_study() -> None:
    told = "output.pause_after is set by the sweep, at the rungs of fidelity; remove it"
    assert problems(STUDY + "config: {output: {pause_after: 2}}\n") == [f"studies/demo.yaml:5: {told}"]
    assert problems(settings=("output.pause_after=2",)) == [f"--set output.pause_after=2: {told}"]
    with pytest.raises(ConfigError, match=f"--set output.pause_after=2: {told}"):
        joined_definition(load().stored(), settings=("output.pause_after=2",))
    write("config/train.yaml", "output:\n  pause_after: 2\n")
    assert problems() == [f"config/train.yaml:2: {told}"]
    assert load_job(Path("config/train.yaml")).output.pause_after == 2


def test_a_search_is_not_scored_on_the_test_split() -> None:
    told = "cross_validation.score: a search never sees the test split; remove it"
    assert problems(STUDY + "cross_validation: {score: test}\n") == [f"studies/demo.yaml:5: {told}"]
    assert told in problems(settings=("cross_validation.score=test",))[0]


def test_a_grid_needs_steps() -> None:
    study = STUDY + "sampler: {name: grid}\n"
    assert problems(study) == [
        "studies/demo.yaml:3: optimizer.lr: a grid needs a choice, an int or a float with a step"
    ]
    assert load(study, settings=("optimizer.lr=0.01",)).pinned == {"optimizer.lr": 0.01}


def test_a_condition_is_checked_against_the_parameter_it_names() -> None:
    name = "  optimizer.name: {choice: [adamw, sgd]}\n"
    assert problems(STUDY + name + "  optimizer.momentum: {float: [0.1, 0.9], when: {optimizer.name: sdg}}\n") == [
        "studies/demo.yaml:6: optimizer.momentum: when: optimizer.name is never 'sdg'; it is one of ['adamw', 'sgd']"
    ]


@pytest.mark.parametrize("rule", ["asha", "hyperband"])
def test_a_first_halving_that_no_trial_comes_to_is_refused(rule: str) -> None:
    study = STUDY + f"stopping:\n  epochs: {rule}\n  min_epochs: 4\n"
    told = f"studies/demo.yaml:7: stopping.min_epochs 4 must be below {{}}: {rule} would stop nothing"
    assert load(study, settings=("training.epochs=5",))
    assert problems(study, settings=("training.epochs=4",)) == [told.format("training.epochs 4")]
    searched = study.replace("stopping:", "  training.epochs: {int: [1, 4]}\nstopping:")
    told = told.replace(":7:", ":8:")
    assert problems(searched) == [told.format("4, the most that is searched for training.epochs")]
    assert problems(searched.replace("[1, 4]", "[1, 5]"), settings=("training.epochs=3",)) == [
        told.format("training.epochs 3")
    ]
    assert load(searched.replace("[1, 4]", "[1, 5]"))
    assert load(STUDY + f"stopping: {{epochs: {rule}}}\n", settings=("training.epochs=1",)), "not what was asked for"


# Pinned parameters


def test_a_searched_parameter_that_is_set_is_pinned_and_others_are_not() -> None:
    definition = load(settings=("optimizer={lr: 0.02, momentum: 0.1}", "seed=3"))
    assert definition.pinned == {"optimizer.lr": 0.02}
    assert definition.trial_config({"optimizer.lr": 0.05}).optimizer.lr == 0.02


def test_a_pinned_value_outside_the_search_space_is_refused_where_it_is_set() -> None:
    space = STUDY + "  optimizer.name: {choice: [adamw]}\n  training.epochs: {int: [1, 9], step: 2}\n"
    assert problems(space, settings=("optimizer.lr=1.0", "optimizer.name=sgd", "training.epochs=4")) == [
        "--set optimizer.lr=1.0: 1.0 is outside what the study searches for optimizer.lr",
        "--set optimizer.name=sgd: 'sgd' is outside what the study searches for optimizer.name",
        "--set training.epochs=4: 4 is outside what the study searches for training.epochs",
    ]


# Trials


def test_sampled_values_that_do_not_go_together_are_told_as_sampled() -> None:
    space = "  training.global_batch_size: {choice: [30, 32]}\n  training.accumulate_grad_batches: {choice: [1, 5]}\n"
    definition = load(STUDY + space)
    assert definition.trial_config({"training.global_batch_size": 30, "training.accumulate_grad_batches": 5})
    with pytest.raises(ConfigError) as caught:
        definition.trial_config({"training.global_batch_size": 32, "training.accumulate_grad_batches": 5})
    assert "training.global_batch_size 32 is not a multiple of accumulate_grad_batches 5" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        definition.trial_config({"optimizer.lr": -1.0})
    assert str(caught.value) == "sampled optimizer.lr=-1.0: optimizer.lr must be greater than 0, not -1.0"


# Identity


@pytest.mark.parametrize(
    "setting",
    [
        "distributed.devices=2",
        "distributed.strategy=none",
        "output.root=/elsewhere",
        "data.num_workers=4",
        "optimizer.lr=0.05",
    ],
)
def test_where_and_how_a_job_runs_is_no_part_of_the_identity(setting: str) -> None:
    assert load(settings=(setting,)).identity() == load().identity()


@pytest.mark.parametrize("setting", ["seed=1", "data.max_length=32", "cross_validation.folds=3", "model.hidden_size=8"])
def test_what_a_job_computes_is_part_of_the_identity(setting: str) -> None:
    key = setting.partition("=")[0]
    before, after = load().identity(), load(settings=(setting,)).identity()
    assert before["config"].get(key) != after["config"][key]
    assert {**before["config"], key: after["config"][key]} == after["config"]


def test_the_objective_and_the_space_are_part_of_the_identity_and_searched_keys_are_not_fixed() -> None:
    identity = load().identity()
    assert identity["objective"] == {"metric": "accuracy", "direction": "maximize"}
    assert identity["search_space"]["optimizer.lr"]["float"] == [0.001, 0.1]
    assert "optimizer.lr" not in identity["config"]
    assert "optimizer.momentum" in identity["config"]


# Several objectives, and constraints

SEVERAL = STUDY.replace(
    "objective: {metric: accuracy, direction: maximize}",
    "objective: [{metric: accuracy, direction: maximize}, {metric: parameters, direction: minimize}]",
)


def test_several_objectives_stop_by_dominance_and_ask_jobs_for_what_they_measure() -> None:
    definition = load(SEVERAL + "constraints: [{metric: inference_ms, at_most: 5}]\n")
    assert (definition.config.stopping.epochs, definition.config.stopping.folds) == ("none", "dominance")
    assert definition.criteria.metrics == ("accuracy", "parameters", "inference_ms")
    assert definition.trial_config({"optimizer.lr": 0.01}).output.measure == ["parameters", "inference_ms"]
    assert load(STUDY).trial_config({"optimizer.lr": 0.01}).output.measure == []


def test_a_worker_reads_the_same_objectives_and_rules_from_the_study() -> None:
    definition = load(SEVERAL + "constraints: [{metric: accuracy, at_least: 0.5}]\nstopping: {risk: 0.2}\n")
    assert joined_definition(json.loads(json.dumps(definition.stored()))).config == definition.config


def test_a_worker_reads_the_same_sizes_from_the_study() -> None:
    text = "config: {training: {epochs: 9}, distributed: {memory_limit: 24GiB}}\n"
    definition = load(STUDY + text + "fidelity: {epochs: {min: 3}, disk: 20GB}\n")
    joined = joined_definition(json.loads(json.dumps(definition.stored())))
    assert (joined.config, joined.job) == (definition.config, definition.job)
    assert joined.config.fidelity and joined.config.fidelity.disk == 20 * 10**9


def test_objectives_and_constraints_are_part_of_the_identity_and_one_objective_stays_as_it_was() -> None:
    identity = load(SEVERAL + "constraints: [{metric: accuracy, at_least: 0.5}]\n").identity()
    assert [each["metric"] for each in identity["objective"]] == ["accuracy", "parameters"]
    assert identity["constraints"] == [{"metric": "accuracy", "at_most": None, "at_least": 0.5}]
    assert "constraints" not in load(STUDY).identity()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            SEVERAL + "stopping: {folds: halving}\n",
            "5: stopping.folds: halving is for one objective; with several, write dominance or none",
        ),
        (
            SEVERAL + "stopping: {epochs: median}\n",
            "5: stopping.epochs: a curve of several objectives has no rule; leave it out, or write none",
        ),
        (
            SEVERAL + "budget: {target: 0.9}\n",
            "5: budget.target: with several objectives there is no one best trial to measure by; leave it out",
        ),
        (
            SEVERAL + "budget: {patience: 5}\n",
            "5: budget.patience: with several objectives there is no one best trial to measure by; leave it out",
        ),
        (
            SEVERAL + "sampler: {name: cmaes}\n",
            "5: sampler.name: cmaes knows one objective; with several, take tpe, nsga2, gp, random, qmc or grid",
        ),
        (
            SEVERAL.replace("metric: parameters", "metric: accuracy"),
            "2: objective: accuracy stands twice; keep one",
        ),
        (
            SEVERAL.replace("metric: parameters", "metric: paramters"),
            "2: objective.1.metric paramters is not a metric of text_classification; did you mean 'parameters'?",
        ),
        (
            STUDY + "stopping: {folds: dominance}\n",
            "5: stopping.folds: dominance is for several objectives; with one, take halving",
        ),
        (
            STUDY + "constraints: [{metric: accurac, at_least: 1}]\n",
            "5: constraints.0.metric accurac is not a metric of text_classification; did you mean 'accuracy'?",
        ),
        (
            STUDY + "constraints: [{metric: loss}]\n",
            "5: constraints.0: the constraint on loss needs exactly one of at_most and at_least",
        ),
    ],
)
def test_what_does_not_go_with_the_objectives_is_told_in_its_place(text: str, problem: str) -> None:
    assert problems(text) == [f"studies/demo.yaml:{problem}"]


def test_a_key_that_is_missing_in_an_objective_is_named_as_one_would_write_it() -> None:
    for written, key in (("{metric: loss}", "objective.direction"), ("[{metric: loss}, {}]", "objective.0.direction")):
        found = problems(STUDY.replace("{metric: accuracy, direction: maximize}", written))
        assert f"studies/demo.yaml:2: {key} is required" in found
