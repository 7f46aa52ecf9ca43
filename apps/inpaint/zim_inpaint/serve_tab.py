"""The tab ``Remove`` of ``zim serve``: the chosen objects go, fill in, or keep the scene."""

from __future__ import annotations

from zim.protocols import TabField, TabRequest, TabResult


class RemoveTab:
    """Takes what was clicked out of the picture."""

    title = "Remove"
    endpoint = "inpaint"
    summary = "Take the selected objects out of the picture."
    needs_matte = True
    fields = (
        TabField(
            "mode",
            "What to do",
            "choice",
            "remove",
            ("remove", "fill", "replace"),
            hint="fill and replace paint what the words say and need a diffusion model",
        ),
        TabField("text", "Words", "text", "", hint="for fill and replace"),
        TabField(
            "backend",
            "Method",
            "choice",
            "auto",
            ("auto", "telea", "patchmatch", "lama", "diffusers"),
        ),
    )

    def ready(self) -> None:
        """Import what the work needs."""
        from zim_inpaint import inpaint  # noqa: F401

    def run(self, request: TabRequest) -> TabResult:
        """Return the picture without the objects."""
        from zim_inpaint import inpaint
        from zim_inpaint.complete import completed

        values, alpha = request.values, request.alpha
        if alpha is not None and values["mode"] != "replace":
            alpha = completed(request.image, alpha)
        result = inpaint(
            request.image,
            alpha,
            mode=values["mode"],
            backend=values["backend"],
            text=values["text"] or None,
        )
        return TabResult(image=result.image, notes=result.notes)


TAB = RemoveTab()
