_base_ = ['../../inr/_base_/networks/cn-pe_28x10.py', '../../inr/_base_/phantom-256_5k.py']
signal = dict(type='mmext.SignalDataset', image='phantom', size=128)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
model = dict(
    operator=dict(type='mmext.MaskedFourierOperator', mask='gaussian'),
    network=dict(out_features=1, encoding=dict(num_octaves=4)),
)
train_cfg = dict(max_iters=600, val_interval=100)
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 600), by_epoch=False)]
