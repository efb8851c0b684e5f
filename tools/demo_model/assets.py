"""Fonts and words that the pictures are drawn with: nothing is vendored, everything comes from Debian packages.

Whole font families and one word in ten are kept out of training, so that held-out pictures show letters and words the
model never saw. The packages to install are named in README.md. On a machine without them (the GPU machine), a copy of
the assets made by `python assets.py --copy DIR` is found through the environment variable DEMO_ASSETS.
"""

import argparse
import hashlib
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

FONT_ROOT = "/usr/share/fonts"
WORD_FILE = "/usr/share/dict/american-english"

# Families as they appear in file names. Weights too thin to survive a small picture are left out.
TRAIN_FONTS = re.compile(
    r"^(DejaVu(Sans|SansMono|Serif)(Condensed)?(-|\.)|Liberation(Sans|SansNarrow|Serif|Mono)-|Free(Sans|Serif|Mono)"
    r"|Roboto-|RobotoCondensed-|OpenSans-(Regular|Bold|Italic|Semibold|ExtraBold|CondBold)|Lato-(Regular|Bold|Black|Italic|Medium)\."
    r"|Cantarell-|EBGaramond(08|12)-|LinLibertine_(R|RB|RI)\.|LinBiolinum_(R|RB|RI)\.|Inconsolata|Hack-|Go-(Regular|Bold|Mono|Italic|Medium)"
    r"|JetBrainsMono-(Regular|Bold|Italic|Medium)\.|Quicksand-|Tinos-(Regular|Bold)|Arimo-(Regular|Italic)|Cousine-(Regular|Bold)\."
    r"|Comfortaa-(Regular|Bold)|Cabin-|Karla-(Regular|Bold)|Dosis-(Medium|Bold|SemiBold|Book)|LeagueSpartan-(Regular|Bold|Medium)\."
    r"|Gillius|Libris|UniversalisADF|OldStandard-|PT[FSCMNZ]\d|Play-|GFSDidot|Goudy|Junction|ComicNeue|Inter-(Regular|Bold|Medium|Italic)\."
    r"|InterDisplay-(Regular|Bold)\.|Quattrocento|Nimbus|URW(Bookman|Gothic)|C059|P052|Vollkorn-(Regular|Bold|Italic)\.|Gen(Bas|BkBas)"
    r"|Manrope-(Regular|Medium|Bold|ExtraBold)|Averia|Veranda|Tymes|Aerial)"
)
HELDOUT_FONTS = re.compile(
    r"^(Carlito-(Regular|Bold)|Caladea-(Regular|Bold)|ClearSans-(Regular|Bold|Medium)|B612-(Regular|Bold)"
    r"|Courier Prime(\.| Bold\.)|RobotoSlab-(Regular|Bold))"
)
TOO_THIN = re.compile(r"Thin|Hairline|ExtraLight|-Light\.|LightItalic|Smallcaps")


def _root(default: str) -> str:
    copied = os.environ.get("DEMO_ASSETS")
    if not copied:
        return default
    return os.path.join(copied, "fonts" if default == FONT_ROOT else "words.txt")


@lru_cache(None)
def fonts(split: str) -> tuple[str, ...]:
    """Paths of the fonts of a split ("train" or "heldout"), sorted by file name so that seeds mean the same everywhere."""
    pattern = TRAIN_FONTS if split == "train" else HELDOUT_FONTS
    found = {}
    for path in sorted(Path(_root(FONT_ROOT)).rglob("*")):
        if path.suffix in (".ttf", ".otf") and pattern.match(path.name) and not TOO_THIN.search(path.name):
            found.setdefault(path.name, str(path))
    if len(found) < (100 if split == "train" else 8):
        raise SystemExit(f"only {len(found)} {split} fonts found; install the packages that README.md names")
    return tuple(found[name] for name in sorted(found))


def is_heldout(word: str) -> bool:
    """One word in ten, chosen by its spelling alone, whatever its case."""
    return hashlib.sha256(word.lower().encode()).digest()[0] < 26


@lru_cache(None)
def words(split: str) -> tuple[str, ...]:
    """English words of 2 to 12 plain letters, in lower case; the two splits share none."""
    with open(_root(WORD_FILE), encoding="utf-8") as lines:
        plain = {line.strip().lower() for line in lines if re.fullmatch(r"[A-Za-z]{2,12}", line.strip())}
    return tuple(sorted(word for word in plain if is_heldout(word) == (split == "heldout")))


def copy_assets(folder: str) -> None:
    from fontTools.subset import main as subset_main

    os.makedirs(os.path.join(folder, "fonts"), exist_ok=True)
    for path in fonts("train") + fonts("heldout"):
        # Only the letters that are drawn: 63 MB of fonts become 8, with the same outlines and kerning.
        subset_main([path, "--unicodes=U+0020-007E", "--no-hinting", f"--output-file={folder}/fonts/{Path(path).name}"])
    shutil.copy(WORD_FILE, os.path.join(folder, "words.txt"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copies the fonts and the word list to a folder for DEMO_ASSETS.")
    parser.add_argument("--copy", required=True, metavar="DIR")
    copy_assets(parser.parse_args().copy)
