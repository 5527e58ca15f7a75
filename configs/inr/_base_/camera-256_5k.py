# A gray picture of a size that a laptop fits in some minutes: 5,000 steps, the rate falls to a tenth.
_base_ = './runtime.py'
signal = dict(type='mmext.SignalDataset', image='camera', size=256)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=5000, val_interval=500)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 5000), by_epoch=False)]
