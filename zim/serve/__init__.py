"""``zim serve``: a page that turns clicks into mattes, and the same over HTTP."""
