"""The method as the papers give it: each step one function, on plain tensors.

Phase 1, where to look: the query row of each question, in `region.find_regions`.

1. R, H_img and EFR of every head: `heads.statistics_of`
2. visual heads H_v: `heads.visual_heads`
3. background heads H_b: `heads.background_heads`
4. the map over the image: `heads.difference_map`
5. the sink border that is left out: `region.sink_border`
6. T, what stands out: `region.above_threshold`
7. T dilated: `region.dilate`

Phase 2, look there: every row of an answer.

1. whether a head's gate is open, R > 0.6 and R > 0.2 H_mass: `kernels.reference`; static,
   as found in phase 1: `steered_keys.known_gate`
2. T times the gain, renormalised: `key_groups.KeyGroups`, weighed by `kernels.reference`
3. Look-Back: whether a row is inside <back>: `back_spans.BackSpans`; uncertain: `uncertainty`;
   which region it is steered to from where on: `timeline.Timeline`

Beside it stand `heads.choose_ablated`, the check that heads matter, and `released`, phase 1 as the
released code computes it; `table` has the methods by their names.
"""
