# The released image fitting: the whole picture in each step, Adam at one rate, 50,000 steps. The picture there is another
# one of the same size, which is not free to ship.
_base_ = './runtime.py'
signal = dict(type='mmext.SignalDataset', image='astronaut')
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=50000, val_interval=5000)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
default_hooks = dict(checkpoint=dict(interval=5000))
