"""``python -m itkstream``: the command line."""

from itkstream.cli import main

if __name__ == "__main__":
    main()
