"""One file per subcommand of ``zim-train``: flags in, a report out."""
