"""Tuning: every optimizer gets the same number of trials, and fresh seeds confirm the best setting of each.

A trial is a run that holds out a share of the training examples and is judged by them after its last epoch. When all
optimizers have had their trials, the best trial of each is written to `choice.json`. Only then is the test split read,
by runs with fresh seeds on all training examples. A study is a folder:

    <runs>/.tune/<name>/study.json    the question; another question needs another study
                        trials.json   the trials of each optimizer: what was drawn, and what came of it
                        choice.json   the best trial of each optimizer, and when it was chosen
                        result.json   space, budget, trials, choice and confirmation of each optimizer

The first three carry a digest. The trials are compared with their runs before anything is chosen, and the choice with
the trials before it is confirmed. The same command resumes a study and draws what it would have drawn, since every draw
follows from the trials noted so far; but trials after a failed one know less than they would have known, and a pruner
does not look again at epochs that a trial had reached when it was killed.
"""
