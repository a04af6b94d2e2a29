"""The commands of ``python -m utils``: one file per command, its options beside its body.

Each has ``add_arguments(parser)`` and ``main(options) -> int``. ``common`` holds the options that several of them
share, ``recipe`` those of a training. What needs TensorFlow is imported inside ``main``, so that help stays quick:
``training``, ``pictures`` (of ``explain``), ``comparison`` (of ``evaluate``) and ``timing`` (of ``benchmark``). Without
it ``image_index`` and ``searching`` do the work of ``index`` and ``search``, and the files that begin with ``bulk_``
that of ``bulk``, with pyarrow. Nothing but `utils.__main__` imports
commands.
"""
