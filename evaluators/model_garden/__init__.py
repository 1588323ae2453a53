"""Model Garden's kind of evaluation: any experiment of `official.vision` with the stock Trainer.

`experiment` makes the parameters as `official.vision.train` does, `data` reads the eval set once,
`trainer` builds task, model and trainer, `evaluation` is asked for one checkpoint after another.
Nothing of the Object Detection API is imported.
"""
