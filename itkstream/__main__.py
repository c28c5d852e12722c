"""``python -m itkstream``: the command line."""

from itkstream.cli.app import main

if __name__ == "__main__":
    main()
