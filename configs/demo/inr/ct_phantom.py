_base_ = ['../../inr/_base_/networks/cn-pe_28x10.py', '../../inr/_base_/phantom-256_5k.py']
# Few and noisy views. The phantom's plains need few octaves: a network that finds smooth things first is right about most of
# it, while back-projection spreads the noise.
signal = dict(type='mmext.SignalDataset', image='phantom', size=128)
train_dataloader = dict(dataset=signal)
val_dataloader = dict(dataset=signal)
test_dataloader = dict(dataset=signal)
model = dict(
    operator=dict(type='mmext.RadonOperator', views=40, noise=0.02),
    network=dict(out_features=1, encoding=dict(num_octaves=2)),
)
train_cfg = dict(max_iters=1000, val_interval=100)
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 1000), by_epoch=False)]
