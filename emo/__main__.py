"""`python -m emo`: see `emo.cli`."""

from emo.cli import main

if __name__ == "__main__":
    main()
