// RRT and SST of OMPL's C++ library around a propagator that is given by its address; benchmarks/ompl_planners.py
// compiles and calls this file. A state holds a vehicle's features, whose distance is Euclidean; the propagator marks
// a state that touches a wall with a NaN.
#include <ompl/base/goals/GoalSampleableRegion.h>
#include <ompl/base/objectives/PathLengthOptimizationObjective.h>
#include <ompl/base/spaces/RealVectorStateSpace.h>
#include <ompl/control/PathControl.h>
#include <ompl/control/SpaceInformation.h>
#include <ompl/control/planners/rrt/RRT.h>
#include <ompl/control/planners/sst/SST.h>
#include <ompl/control/spaces/RealVectorControlSpace.h>
#include <ompl/util/Console.h>
#include <ompl/util/RandomNumbers.h>

#include <cmath>
#include <ctime>
#include <limits>

namespace ob = ompl::base;
namespace oc = ompl::control;

using Step = void (*)(double *told, const bool *blocked, const double *state, const double *control, double *result);

struct Limits
{
    double goal_bias, selection, pruning, cpu_seconds, steps;
    int shortest, longest;
    double step_seconds;
};

struct Report
{
    double cpu_seconds;
    int edges, nodes;
};

static const double *values(const ob::State *state)
{
    return state->as<ob::RealVectorStateSpace::StateType>()->values;
}

static double *values(ob::State *state)
{
    return state->as<ob::RealVectorStateSpace::StateType>()->values;
}

static double cpu_seconds()
{
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

// States whose position is uniform in given cells, as that of our own trees' samples.
class Cells : public ob::RealVectorStateSampler
{
public:
    Cells(const ob::StateSpace *space, const double *corners, int n, double side)
      : RealVectorStateSampler(space), corners_(corners), n_(n), side_(side)
    {
    }

    void sampleUniform(ob::State *state) override
    {
        RealVectorStateSampler::sampleUniform(state);
        const double *corner = corners_ + 2 * rng_.uniformInt(0, n_ - 1);
        values(state)[0] = corner[0] + side_ * rng_.uniform01();
        values(state)[1] = corner[1] + side_ * rng_.uniform01();
    }

private:
    const double *corners_;
    int n_;
    double side_;
};

class Disc : public ob::GoalSampleableRegion
{
public:
    Disc(const ob::SpaceInformationPtr &si, const double *goal)
      : GoalSampleableRegion(si), x_(goal[0]), y_(goal[1]), sampler_(si->allocStateSampler())
    {
        setThreshold(goal[2]);
    }

    double distanceGoal(const ob::State *state) const override
    {
        return std::hypot(values(state)[0] - x_, values(state)[1] - y_);
    }

    void sampleGoal(ob::State *state) const override
    {
        sampler_->sampleUniform(state);
        values(state)[0] = x_;
        values(state)[1] = y_;
    }

    unsigned int maxSampleCount() const override
    {
        return std::numeric_limits<unsigned int>::max();
    }

private:
    double x_, y_;
    ob::StateSamplerPtr sampler_;
};

// Pieces of the path, (u1, u2, seconds) each, or -1 where none was found; told[0] counts steps of the dynamics. States
// are drawn in the bounds, or, where `cells` is not 0, in that many square cells.
extern "C" int plan(int sst, unsigned seed, Step step, double *told, const bool *blocked, int dimension,
                    const double *low, const double *high, const double *start, const double *goal, const double *rate,
                    int cells, const double *corners, double side, const Limits *limits, Report *report, int capacity,
                    double *path)
{
    ompl::msg::noOutputHandler();
    ompl::RNG::setSeed(seed);
    auto space = std::make_shared<ob::RealVectorStateSpace>(dimension);
    ob::RealVectorBounds bounds(dimension), rates(2);
    bounds.low.assign(low, low + dimension);
    bounds.high.assign(high, high + dimension);
    space->setBounds(bounds);
    if (cells)
        space->setStateSamplerAllocator(
            [=](const ob::StateSpace *of) { return std::make_shared<Cells>(of, corners, cells, side); });
    auto controls = std::make_shared<oc::RealVectorControlSpace>(space, 2);
    for (int i = 0; i < 2; ++i)
    {
        rates.low[i] = -rate[i];
        rates.high[i] = rate[i];
    }
    controls->setBounds(rates);

    auto si = std::make_shared<oc::SpaceInformation>(space, controls);
    si->setStatePropagator([=](const ob::State *a, const oc::Control *u, double, ob::State *b)
                           { step(told, blocked, values(a), u->as<oc::RealVectorControlSpace::ControlType>()->values,
                                  values(b)); });
    si->setStateValidityChecker([](const ob::State *state) { return !std::isnan(values(state)[0]); });
    si->setPropagationStepSize(limits->step_seconds);
    si->setMinMaxControlDuration(limits->shortest, limits->longest);
    si->setup();

    auto definition = std::make_shared<ob::ProblemDefinition>(si);
    ob::ScopedState<ob::RealVectorStateSpace> root(space);
    std::copy(start, start + dimension, root->values);
    definition->addStartState(root);
    definition->setGoal(std::make_shared<Disc>(si, goal));

    ob::PlannerPtr planner;
    if (sst)
    {
        auto objective = std::make_shared<ob::PathLengthOptimizationObjective>(si);
        objective->setCostThreshold(objective->infiniteCost());  // the first plan will do
        definition->setOptimizationObjective(objective);
        auto made = std::make_shared<oc::SST>(si);
        made->setGoalBias(limits->goal_bias);
        made->setSelectionRadius(limits->selection);
        made->setPruningRadius(limits->pruning);
        planner = made;
    }
    else
    {
        auto made = std::make_shared<oc::RRT>(si);
        made->setGoalBias(limits->goal_bias);
        planner = made;
    }
    planner->setProblemDefinition(definition);
    planner->setup();

    report->edges = 0;
    const double began = cpu_seconds();
    planner->solve(ob::PlannerTerminationCondition(
        [&]
        {
            bool over = told[0] >= limits->steps;
            if (report->edges % 16 == 0)  // the clock is a system call
                over = over || cpu_seconds() - began >= limits->cpu_seconds;
            report->edges += !over;
            return over;
        }));
    report->cpu_seconds = cpu_seconds() - began;

    ob::PlannerData data(si);
    planner->getPlannerData(data);
    report->nodes = data.numVertices();
    if (!definition->hasExactSolution())
        return -1;
    const auto &found = *definition->getSolutionPath()->as<oc::PathControl>();
    const int pieces = found.getControlCount();
    for (int i = 0; i < std::min(pieces, capacity); ++i)
    {
        const double *u = found.getControl(i)->as<oc::RealVectorControlSpace::ControlType>()->values;
        path[3 * i] = u[0];
        path[3 * i + 1] = u[1];
        path[3 * i + 2] = found.getControlDuration(i);
    }
    return pieces;
}
