"""The page of this Space. `pinned.json` names the bundle, its commit and the sha256 of its manifest."""

from natix_hf.serve.space import build

if __name__ == "__main__":
    build("pinned.json").launch()
