"""The embedded default: a small world in which the whole program runs on a laptop's CPU.

A task with exact answers (`task`), scripted teachers that answer it (`teachers`), a tiny student (`student/`)
trained from scratch by `train` on the texts of `corpus`, and the candidates that `pool` writes. It shows that
the program works; it says nothing about language models.
"""
