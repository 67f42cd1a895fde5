"""The pool: real and synthetic images as labelled, unlabelled, validation and test sets, with a manifest."""
