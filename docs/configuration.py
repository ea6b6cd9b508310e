"""Writes docs/configuration.md: every key, from biencoder/config/schema.py, and the recipes that set it.

python docs/configuration.py
"""

from pathlib import Path

from biencoder.config.keys import describe
from biencoder.config.load import load_config
from biencoder.config.schema import Config, OnResume, resume_rules

PAGE = Path(__file__).with_suffix(".md")
RECIPES = sorted((PAGE.parent.parent / "configs").glob("*.toml"))
_RESUME = {
    OnResume.FREE: "may change",
    OnResume.FIXED: "fixed",
    OnResume.LENGTH: "may change where no learning rate depends on it",
}
_OPENING = """# Every key

Made by `python docs/configuration.py` from `biencoder/config/schema.py`; `train.py --help` shows the same texts. A key is
set in a file (`--config FILE`, TOML or YAML, a section for each heading) or on the command line (`--train.lr 1e-5`), which
wins.

*On resume* says whether a run that goes on from a checkpoint may have another value. *Recipes* are the files in
`configs/` that set the key; the others belong to the command line.
"""


def page() -> str:
    """The whole page."""
    rows, recipes, rules, texts = Config().flat(), recipes_of_keys(), resume_rules(), [_OPENING]
    section = None
    for key, (description, allowed, default) in describe().items():
        heading = key.split(".")[0] if "." in key else "The file for DeepSpeed"
        if heading != section:
            section = heading
            texts.append(f"\n## {heading}\n\n| key | default | meaning | on resume | recipes |\n|---|---|---|---|---|")
        assert key in rows
        shown = str(default).lower() if isinstance(default, bool) else default
        meaning = f"{description} *{allowed[0].upper()}{allowed[1:]}.*".replace("|", r"\|")
        used = ", ".join(recipes.get(key, [])) or "–"
        texts.append(
            f"| `{key}` | {f'`{shown}`' if shown != '' else 'empty'} | {meaning} | {_RESUME[rules[key]]} | {used} |"
        )
    return "\n".join(texts) + "\n"


def recipes_of_keys() -> dict[str, list[str]]:
    """Key → recipes in which it is not the default."""
    default, keys = Config().flat(), dict[str, list[str]]()
    for file in RECIPES:
        for key, value in load_config(file=file).flat().items():
            if value != default[key]:
                keys.setdefault(key, []).append(file.stem)
    return keys


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
