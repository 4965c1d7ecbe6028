"""People write ideal answers and rank a model's: `python -m pyengine.annotate`.

store.py     what was decided, by whom; who sees what next; agreement; the files for training
app.py       the page's server, and the answers that a model writes ahead of the people
page.html    the page
"""

from .store import Store

__all__ = ["Store"]
