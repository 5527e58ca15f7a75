# A picture small enough for a minute: 1,000 steps, the rate falls to a tenth.
_base_ = './runtime.py'
signal = dict(type='mmext.SignalDataset', image='camera', size=64)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=250)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 1000), by_epoch=False)]
