# FreSh's schedule: 15,000 steps at one rate, on values in (-1, 1); the picture is ours.
_base_ = './runtime.py'
signal = dict(type='mmext.SignalDataset', image='camera')
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=15000, val_interval=1500)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4))
