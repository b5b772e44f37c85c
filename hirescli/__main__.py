"""`python -m hirescli` is `hires`."""

from hirescli.cli.app import main

if __name__ == "__main__":
    main()
