_base_ = '../_base_/shape-64_500.py'
oriented = dict(shape='blocks', kind='oriented')
train_dataloader = dict(dataset=oriented)
val_dataloader = dict(dataset=oriented)
test_dataloader = dict(dataset=oriented)
model = dict(
    operator=dict(_delete_=True, type='mmext.OrientedPointOperator'),
    network=dict(act_cfg=dict(type='mmext.SineActivation', w0=15.0)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
