"""`python -m skilltune`: the command line."""

from skilltune.cli.main import main

if __name__ == "__main__":
    main()
