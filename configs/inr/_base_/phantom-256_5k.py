# The Shepp-Logan phantom for inverse problems, with the same schedule. The published scripts have scans of their own at this
# size.
_base_ = './camera-256_5k.py'
signal = dict(type='mmext.SignalDataset', image='phantom', size=256)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
