"""The run's page: runs/<name>/report.html, one file that needs nothing else, alive while the run goes on.

    python -m pyengine.report runs/default      draws the page of a run, finished or not
    report.refresh(run)                         the hook of the stages: draws it again when it is time

page.py puts it together from the sections, each a function of what the run has written so far (data.py) that
gives what its template shows, or None while there is nothing to show. Everything a page shows from outside (a
crawled text, a model's words) is escaped by the templates, and the page's own policy forbids any script but its
one and any request.

To add a section: a function in sections/, a template of the same name, a row in page.py.
"""

from .page import refresh, settle, write

__all__ = ["refresh", "settle", "write"]
