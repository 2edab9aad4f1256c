"""The ops, each declared once. Importing this package fills ``graph.OPS``.

An ordinary op is added in one place: its declaration in the file of its kind.
"""

from trivium.ops import (
    activation,
    attention,
    choice,
    control,
    conv,
    creation,
    elementwise,
    functions,
    index,
    linalg,
    loss,
    moved,
    norm,
    pool,
    random,
    recurrent,
    reduce,
    shape,
    update,
)
