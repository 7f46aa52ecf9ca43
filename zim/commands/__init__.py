"""The subcommands of ``zim``: flags and reports, no matting of their own."""
