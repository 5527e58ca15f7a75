_base_ = ['../../inr/_base_/networks/bn-pe_28x10.py', '../../inr/_base_/astronaut-512_50k.py']
signal = dict(type='mmext.SignalDataset', image='astronaut', size=128)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
# As many octaves as 128 samples carry.
model = dict(network=dict(encoding=dict(num_octaves=5)))
train_cfg = dict(max_iters=1000, val_interval=100)
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 1000), by_epoch=False)]
