_base_ = '../../inr/_base_/phantom-256_5k.py'
# The signal that the encoder sees is the filtered back-projection, not the truth.
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.RadonOperator', views=100),
    network=dict(
        type='mmext.SPW',
        network=dict(
            type='mmext.CoordMLP',
            out_features=1,
            encoding=dict(type='mmext.PositionalEncoding', num_octaves=3),
            norm_cfg=dict(type='mmext.CrossNorm'),
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
