"""A test set as MicroMat-3K was made (Appendix A): automatic masks, converter, a person's eye."""
