"""The commands of ``python -m utils``, a file each. Nothing but `utils.__main__` imports them."""
