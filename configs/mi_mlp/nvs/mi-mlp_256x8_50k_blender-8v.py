# Eight views, with both regularizations. Steps, weights and the annealing are our reading. With root= the views are NeRF's
# own: indices=[26, 86, 2, 55, 75, 93, 16, 73] of the training views, as several papers have them.
_base_ = '../../inr/_base_/views-400_200k.py'
views = dict(views=8)
train_dataloader = dict(dataset=dict(one_view=False, **views))
val_dataloader = dict(dataset=views)
test_dataloader = dict(dataset=views)
model = dict(
    operator=dict(coarse='shared', background_weight=1e-2, anneal=(2000, 0.2, 0.5)),
    network=dict(
        _delete_=True,
        type='mmext.MultiInputMLP',
        in_features=6,
        branches='split',
        width=256,
        depth=8,
        octaves=4,
        color_octaves=10,
    ),
)
train_cfg = dict(max_iters=50_000, val_interval=10_000)
