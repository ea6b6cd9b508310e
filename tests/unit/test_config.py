import re
from pathlib import Path

import pytest

from biencoder.config.keys import describe
from biencoder.config.load import load_config
from biencoder.config.paths import user_path
from biencoder.config.schema import Config, TrainConfig
from biencoder.errors import ConfigError, ModelError
from biencoder.model.pretrained import locate
from biencoder.retrieval.embedders import load_models
from launcher.entry import parse_run

PUBLIC = """data.root model.name model.max_length model.dropout run.dir run.seed train.epochs train.max_steps
train.global_batch_size train.micro_batch_size train.lr train.clip_norm loss.margin mining.index mining.random_rate
eval.every_epochs deepspeed_config""".split()


def parse(*argv: str) -> Config:
    return parse_run(argv, prog="train.py", description="").config


def test_public_names_exist_and_everything_is_described() -> None:
    keys = describe()
    assert set(PUBLIC) <= set(keys)
    assert list(keys) == list(Config().flat())
    assert all(len(text) > 20 and text.endswith(".") for text, _, _ in keys.values())


def test_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nlr = 2e-5\nepochs = 7\n")
    config = parse("--config", str(file), "--train.lr", "1e-4", "--data.clean=false")
    assert (config.train.lr, config.train.epochs, config.data.clean) == (1e-4, 7, False)
    assert config.train.clip_norm == Config().train.clip_norm


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[model]\nname = "x"\n[mining]\nrandom_rate = 0.5\n')
    (tmp_path / "a.yaml").write_text("model: {name: x}\nmining: {random_rate: 0.5}\n")
    assert load_config(file=tmp_path / "a.toml") == load_config(file=tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--train.lrr", "1"], "unknown key `train.lrr`; the nearest valid one is `train.lr`"),
        (["--train.lr", "-1"], '`train.lr` is "-1", expected a number > 0 and <= 10'),
        (["--mining.index", "annoy"], "expected one of balltree, faiss"),
        (["--train.epochs", "many"], '`train.epochs` is "many", expected an integer >= 1'),
        (["--train.lr", "0", "--loss.margin", "0"], "`loss.margin` is"),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_wrong_arguments_get_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.toml", "[trian]\nlr = 1\n", "unknown key `trian`"),
        ("a.toml", "[train\n", "is not valid TOML"),
        ("a.yaml", "train: [\n", "is not valid YAML"),
        ("a.yaml", "- 1\n", "must hold sections"),
        ("a.ini", "", "must end in .toml"),
        ("a.toml", "train = 3\n", "`train` is 3, expected a section of keys"),
    ],
)
def test_wrong_files_get_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(file=tmp_path / name)
    assert sentence in str(error.value)
    assert name in str(error.value)


def test_the_file_is_named_for_what_stands_in_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = 0\n")
    with pytest.raises(ConfigError) as both:
        load_config(file=file, overrides={"train.lr": "fast"})
    epochs, lr = str(both.value).split("; ")
    assert epochs.startswith("`train.epochs` is 0")
    assert epochs.endswith(f" in {file}")
    assert lr.startswith('`train.lr` is "fast"')
    assert str(file) not in lr
    with pytest.raises(ConfigError) as one:
        load_config(file=file, overrides={"train.epochs": "-1"})
    assert str(file) not in str(one.value)


def test_a_value_in_place_of_a_section_is_refused_though_the_command_line_sets_a_key_of_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("train = 3\n")
    with pytest.raises(ConfigError, match=r"`train` is 3, expected a section of keys in .*run\.toml"):
        load_config(file=file, overrides={"train.lr": "1e-5"})


def test_launchers_may_add_their_own_arguments() -> None:
    assert parse("--local_rank=1", "--deepspeed", "--deepspeed_config", "x.json").deepspeed_config == "x.json"


@pytest.mark.parametrize(
    ("world_size", "micro", "good"), [(2, 0, True), (3, 0, False), (2, 2, True), (2, 3, False), (16, 0, False)]
)
def test_batch_must_divide_over_ranks(world_size: int, micro: int, good: bool) -> None:
    config = Config(train=TrainConfig(global_batch_size=8, micro_batch_size=micro))
    if good:
        config.check(world_size)
        assert config.train.micro_batch(world_size) * config.train.accumulation(world_size) * world_size == 8
    else:
        with pytest.raises(ConfigError, match="global_batch_size 8 is not a multiple"):
            config.check(world_size)


@pytest.mark.parametrize(("rule", "peak"), [("linear", 4e-6), ("sqrt", 2e-6), ("none", 1e-6)])
def test_learning_rate_grows_with_the_batch(rule: str, peak: float) -> None:
    config = load_config(overrides={"train.lr": "1e-6", "train.global_batch_size": "32", "train.lr_scaling": rule})
    assert config.train.peak_lr == pytest.approx(peak)


def test_random_rate_decays_to_zero() -> None:
    mining = load_config(overrides={"mining.random_rate": "0.8", "mining.random_rate_decay": "0.3"}).mining
    assert [mining.random_rate_at(epoch) for epoch in range(4)] == pytest.approx([0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "~nobody-of-this-name"])
def test_a_home_that_nobody_has_is_one_sentence(name: str) -> None:
    assert user_path(name) == Path(name)
    with pytest.raises(ModelError, match="does not exist"):
        locate(name)
    with pytest.raises(ModelError):
        load_models([name])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mining.negatives": "0"}, "mining.negatives is 0, but triplet and classification loss need negatives"),
        ({"mining.range_max": "2", "mining.negatives": "2", "mining.range_min": "1"}, "mining.range_max 2 leaves"),
        (
            {"loss.classification_weight": "0", "eval.metric": "rerank/accuracy@1"},
            "eval.metric rerank/accuracy@1 needs a pair classifier",
        ),
        (
            {"loss.triplet_weight": "0", "model.classifier_gradient": "0"},
            "model.classifier_gradient is 0 and no other loss has a weight",
        ),
        ({"mining.positive_share": "0.9"}, "mining.positive_share compares cosines, but model.normalize is false"),
        ({"mining.overlap": "true", "mining.placement": "sharded"}, "mining.overlap works on rank 0"),
    ],
)
def test_values_that_contradict_each_other_get_one_sentence(settings: dict[str, str], sentence: str) -> None:
    config = load_config(overrides=settings)
    with pytest.raises(ConfigError) as raised:
        config.check(1)
    assert sentence in str(raised.value)


def test_what_help_says_of_a_key_is_what_is_checked() -> None:
    assert {key: default for key, (_, _, default) in describe().items()} == Config().flat()
    limits = {">": 0.0, ">=": -1.0, "<": 0.0, "<=": 1.0}  # what to add for a value that is refused
    checked = 0
    for key, (_, allowed, _) in describe().items():
        wrong = ["?"] if allowed.startswith(("one of", "a number", "an integer", "true")) else []
        wrong += [f"{float(number) + limits[sign]:.0f}" for sign, number in re.findall(r"([<>]=?) (\S+)", allowed)]
        for value in wrong:
            with pytest.raises(ConfigError, match=re.escape(f"expected {allowed}")):
                load_config(overrides={key: value})
        for value in allowed.removeprefix("one of ").split(", ") if allowed.startswith("one of") else []:
            load_config(overrides={key: value})
        checked += len(wrong)
    assert checked > 100
